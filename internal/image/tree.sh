#!/bin/sh
# Turns the tree that mmdebstrap has just installed into the base of a runtime image: kernel, boot modules, root disk.
#
# mmdebstrap calls it as its customize hook, on the host, inside the namespaces of the installation: here, and nowhere else,
# the tree's files have their owners and mounts go away by themselves. base.go says what the WB_ variables mean.
set -eu
tree=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$WB_OUT"

say() { echo "warmboot: $*" >&2; }
fail() { echo "E: $*" >&2; exit 1; }

# The kernel is unpacked, not installed: its package depends on an initramfs generator and udev, which nothing here needs.
say kernel
kernel=$(apt-cache depends --no-recommends "$WB_KERNEL" | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] || fail "package $WB_KERNEL names no kernel; does the mirror carry it for this suite?"
apt-get -q -o APT::Sandbox::User=root download "$kernel"

# A bind mount leaves out the /proc, /sys and device mounts that mmdebstrap has made in the tree for the packages' scripts.
mkdir bare
mount --bind "$tree" bare
tree=$WB_OUT/bare
# What mmdebstrap will look for again in /dev and /tmp is covered, not removed.
mount -t tmpfs -o mode=0755 warmboot "$tree/dev"
mount -t tmpfs -o mode=1777 warmboot "$tree/tmp"

dpkg-deb --fsys-tarfile ./*.deb | tar -x --keep-directory-symlink -C "$tree"
chroot "$tree" dpkg-query -W >packages.txt
ls ./*.deb >>packages.txt
rm ./*.deb
release=$(ls "$tree/usr/lib/modules")
mv "$tree/boot/vmlinuz-$release" vmlinuz

say modules
(
	cd "$tree/usr/lib/modules/$release"
	chroot "$tree" depmod "$release"
	# A line of modules.dep names a module and everything that it needs.
	grep -E "$WB_MODULES" modules.dep | tr -d : | tr ' ' '\n' | sort -u >"$WB_OUT/keep"
	find kernel -name '*.ko*' | sort | comm -23 - "$WB_OUT/keep" | xargs -r rm
	find kernel -type d -empty -delete
	chroot "$tree" depmod "$release"
	rm "$WB_OUT/keep"

	mkdir "$WB_OUT/modules"
	for name in $WB_BOOT_MODULES; do
		file=$(echo "$name" | sed 's/[-_]/[-_]/g').ko
		if grep -q "/$file$" modules.builtin; then
			continue
		fi
		# What a module needs stands behind it, the deepest last.
		line=$(grep "/$file[.a-z]*:" modules.dep) || fail "kernel $release has no module $name"
		for path in $(echo "$line" | tr -d : | tr ' ' '\n' | tac); do
			to=$(basename "$path" | sed 's/\.ko\..*/.ko/')
			[ ! -e "$WB_OUT/modules/$to" ] || continue
			case $path in
			*.xz) xz -dc "$path" >"$WB_OUT/modules/$to" ;;
			*.zst) zstd -qdc "$path" >"$WB_OUT/modules/$to" ;;
			*) cp "$path" "$WB_OUT/modules/$to" ;;
			esac
			echo "/lib/modules/$to" >>"$WB_OUT/modules/warmboot.list"
		done
	done
)

say root disk
(
	cd "$tree"
	# shellcheck disable=SC2086 # the patterns are meant to be expanded
	rm -rf $WB_REMOVE
	find run boot var/log var/tmp -mindepth 1 -delete
	find . -xdev \( -type b -o -type c -o -type p -o -type s \) -delete
	mkdir -p proc sys var/lib/docker var/lib/containerd
	: >etc/machine-id
	: >etc/resolv.conf
	echo warmboot >etc/hostname
	printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
	chmod 0644 etc/machine-id etc/resolv.conf etc/hostname etc/hosts
	ln -sfn warmboot-guest usr/sbin/init
)
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# A tenth and 64 MiB over what the files take, for the file system itself and the guest agent; the last step cuts it to size.
kib=$(du -skx "$tree" | cut -f 1)
inodes=$(find "$tree" -xdev | wc -l)
mkfs.ext4 -q -b 4096 -m 0 -N $((inodes + 64)) -O '^has_journal,^resize_inode' -L warmboot \
	-U "$WB_UUID" -E "hash_seed=$WB_UUID,lazy_itable_init=0,root_owner=0:0" -d "$tree" rootfs.ext4 $((kib + kib / 10 + 65536))k
umount -R "$tree"
rmdir bare
chmod 0644 vmlinuz rootfs.ext4 packages.txt
say finished
