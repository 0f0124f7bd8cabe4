#!/bin/busybox sh
# The nested host's initrd: loads what reaches the root disk, and hands over to systemd there.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in $($b cat /modules); do
	$b insmod "$module"
done
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do
	$b sleep 0.1
	tries=$((tries + 1))
done
# The inode tables that mkfs has left out are zero already: the disk is sparse.
$b mount -t ext4 -o noatime,noinit_itable /dev/vda /newroot || exit 1
$b mount -o move /dev /newroot/dev
exec $b switch_root /newroot /sbin/init
