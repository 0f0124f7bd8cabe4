// Package guest is what runs inside every microVM: the guest agent. Started as the initrd's /init it finds the root disk and
// hands over to the init there; as PID 1 it sets the machine up, supervises containerd and dockerd and reaps orphans; as a
// service under another init (join) it does what that init cannot know of, and leaves the rest to it. In all cases it serves the guest
// API (package guestrpc) over a virtio-serial port and over vsock.
//
// What it needs of a runtime image as PID 1: a read-only root disk /dev/vda with the mount points /proc /sys /dev /run /tmp
// /var/lib/docker /var/lib/containerd; a data disk /dev/vdb with an ext4 file system; dockerd, containerd, runc and modprobe. What
// an image with another init needs is in deploy/README.md.
package guest
