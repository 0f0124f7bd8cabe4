#!/bin/sh
# Turns the tree that mmdebstrap has just installed into the nested host: its kernel, initrd and root disk.
#
# mmdebstrap calls it as its customize hook; image.Tree says where and how, recipe.go what the WB_ variables mean.
set -eu
tree=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$WB_OUT"

# The kernel is unpacked, not installed: its package depends on an initramfs generator, which a machine with an initrd of ours does not need.
kernel=$(apt-cache depends --no-recommends "$WB_KERNEL" | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] || { echo "E: package $WB_KERNEL names no kernel" >&2; exit 1; }
apt-get -q -o APT::Sandbox::User=root download "$kernel"

# A bind mount leaves out the /proc, /sys and device mounts that mmdebstrap has made in the tree.
mkdir bare
mount --bind "$tree" bare
tree=$WB_OUT/bare
mount -t tmpfs -o mode=0755 nestedhost "$tree/dev"
mount -t tmpfs -o mode=1777 nestedhost "$tree/tmp"

dpkg-deb --fsys-tarfile ./*.deb | tar -x --keep-directory-symlink -C "$tree"
rm ./*.deb
release=$(ls "$tree/usr/lib/modules")
cp "$tree/boot/vmlinuz-$release" vmlinuz

modules=$tree/usr/lib/modules/$release
chroot "$tree" depmod "$release"
# file_of prints where a module is, below $modules.
file_of() { grep -o "^[^:]*/$(echo "$1" | sed 's/[-_]/[-_]/g')\.ko[^:]*" "$modules/modules.dep"; }
# Unpacking a module is work for an emulated processor, so those that are always or often needed are unpacked here.
for name in $WB_PLAIN_MODULES; do
	for path in $(grep "^$(file_of "$name"):" "$modules/modules.dep" | tr -d :); do
		[ ! -e "$modules/$path" ] || xz -d "$modules/$path"
	done
done
chroot "$tree" depmod "$release"

mkdir -p initrd/bin initrd/lib initrd/dev initrd/newroot
cp "$tree/usr/bin/busybox" initrd/bin/
cp "$WB_INIT" initrd/init
chmod 0755 initrd/init
for name in $WB_BOOT_MODULES; do
	[ -n "$(file_of "$name")" ] || { echo "E: kernel $release has no module $name" >&2; exit 1; }
	# What a module needs stands behind it, the deepest last.
	for path in $(grep "^$(file_of "$name"):" "$modules/modules.dep" | tr -d : | tr ' ' '\n' | tac); do
		to=initrd/lib/$(basename "$path" .xz)
		[ ! -e "$to" ] || continue
		case $path in
		*.xz) xz -dc "$modules/$path" >"$to" ;;
		*) cp "$modules/$path" "$to" ;;
		esac
		echo "${to#initrd}" >>initrd/modules
	done
done
(cd initrd && find . | LC_ALL=C sort | busybox cpio -o -H newc >../initrd.img 2>/dev/null)
rm -r initrd

(
	cd "$tree"
	find run var/log var/tmp -mindepth 1 -delete
	: >etc/resolv.conf
	: >etc/machine-id # the kernel's command line has one
	echo nestedhost >etc/hostname
	printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
	chmod 0644 etc/resolv.conf etc/machine-id etc/hostname etc/hosts
	ln -sf multi-user.target usr/lib/systemd/system/default.target
	for unit in $WB_MASK; do
		ln -sf /dev/null "etc/systemd/system/$unit"
	done
	# With the defaults of these, QEMU 7.2's emulation of SVM crashed the machine's kernel at the second restored guest.
	echo 'options kvm_amd vls=0 vgif=0 avic=0' >etc/modprobe.d/nestedhost.conf
	printf '%s\n' $WB_LOAD_MODULES >etc/modules-load.d/nestedhost.conf
	for share in in out; do
		mkdir -p "host/$share"
		# A mount that comes while another loads the driver would find it without devices.
		cat >"etc/systemd/system/host-$share.mount" <<UNIT
[Unit]
After=systemd-modules-load.service

[Mount]
What=$share
Where=/host/$share
Type=9p
Options=trans=virtio,version=9p2000.L,msize=1048576,cache=loose
UNIT
	done
	cat >etc/systemd/system/nestedhost-agent.service <<'UNIT'
[Unit]
Description=Runs commands for the machine outside
RequiresMountsFor=/host/in /host/out

[Service]
ExecStart=/host/in/agent
Restart=always
RestartSec=100ms
KillMode=process
OOMScoreAdjust=-1000
UNIT
	mkdir -p etc/systemd/system/multi-user.target.wants
	ln -s ../nestedhost-agent.service etc/systemd/system/multi-user.target.wants/
	# Nothing is to be done at the first boot that was not done here.
	touch etc/.updated var/.updated
)

mkfs.ext4 -q -b 4096 -m 0 -N 262144 -L nestedhost -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$tree" root.img "$WB_DISK"
umount -R "$tree"
rmdir bare
chmod 0644 vmlinuz initrd.img root.img
