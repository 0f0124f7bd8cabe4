// Package image makes runtime images and checks them. A runtime image is what a container's microVM boots: a kernel, an
// initrd, and a root disk that is never written, with Docker Engine, containerd, runc and warmboot-guest in it.
//
// # Making
//
// Build installs Debian packages with mmdebstrap and leaves three files that any user may read:
//
//	DIR/<first 16 digits of the recipe's digest>/vmlinux      the kernel as an ELF file, unpacked: a VMM starts it at its PVH entry
//	                                             initrd.img   newc archive: warmboot-guest as /init, and the modules that reach the root disk
//	                                             rootfs.ext4  no journal, no free space
//	                                             image.json   what it was made from
//
// All but the guest agent is the base, kept in DIR/base-<digest> under the digest of a recipe of its own: a new
// warmboot-guest costs a second, not an installation. The base's recipe names a suite, not package versions, so a base stays as old as
// the day it was made until Config.NoCache asks for a new one. An image's recipe has the versions in it.
//
// Everything is written in a directory DIR/.draft-* and renamed when it is whole and on disk. One build runs per DIR at
// a time; the next one removes what a crashed one has left. Mounts live in a mount namespace that dies with mmdebstrap,
// and device nodes only in mmdebstrap's own tree.
//
// # What the guest finds
//
// The initrd has /init, the directories /dev /proc /sys /newroot, the device /dev/console, uncompressed modules
// /lib/modules/*.ko, and /lib/modules/warmboot.list: their paths, one a line, in the order to load them. The root disk has
// /usr/sbin/warmboot-guest, /sbin/init that leads to it, and the empty directories /proc /sys /dev /run /tmp
// /var/lib/docker /var/lib/containerd; its modules are compressed, and kmod is there to load them. /etc/machine-id and
// /etc/resolv.conf are empty, the host name is "warmboot". There is no package manager, perl, docker CLI or init system.
//
// A kernel that is entered at its PVH entry does not randomise its own addresses. Machines restored from one snapshot
// share them anyway.
//
// # Checking
//
// Inspect looks at an image's files, made here or by the user, as something hostile: see there.
package image
