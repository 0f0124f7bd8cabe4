package nestedhost

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"strings"
)

//go:embed tree.sh
var treeScript string

//go:embed init.sh
var initScript string

// recipe is all that decides what a machine is made of, except for the versions that the mirror has at the time.
type recipe struct {
	Suite, Mirror     string
	Packages, Exclude []string
	Kernel            string   // package that depends on the current kernel
	BootModules       []string // modules of the initrd, in order
	PlainModules      []string // modules that are not left compressed, with what they need
	LoadModules       []string // modules that are loaded at boot; there is no udev rule run for what is there at boot
	Mask              []string // units that are not started
	Disk              string   // size of the root disk; what is not used takes no space
	Tree, Init        string
}

func newRecipe(suite, mirror string) recipe {
	return recipe{
		Suite: suite, Mirror: mirror,
		Packages: []string{
			"systemd-sysv", "udev", "kmod", "util-linux", "iproute2", "nftables", "e2fsprogs", "ca-certificates",
			"qemu-system-x86", "qemu-utils", "busybox-static",
		},
		Exclude: []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/zoneinfo/*"},
		Kernel:  "linux-image-amd64",
		// ext4 finds crc32c by its name in the kernel's crypto registry, so depmod does not know that it needs it.
		BootModules:  []string{"virtio_blk", "crc32c_generic", "ext4"},
		PlainModules: []string{"kvm_amd", "9p", "9pnet_virtio", "virtio_rng", "vhost_vsock", "vhost_net", "nf_tables", "overlay", "tun", "veth", "loop"},
		LoadModules:  []string{"kvm_amd", "9p", "9pnet_virtio", "virtio_rng"},
		// Each of these costs an emulated processor a part of a second at boot, and no test needs it.
		Mask: []string{
			"systemd-udev-trigger.service", "systemd-udev-load-credentials.service", "systemd-tmpfiles-setup-dev-early.service",
			"systemd-random-seed.service", "systemd-pstore.service", "systemd-binfmt.service", "systemd-network-generator.service",
			"systemd-logind.service", "systemd-user-sessions.service", "systemd-update-utmp.service", "systemd-journal-flush.service",
			"modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
			"sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
			"dev-hugepages.mount", "dev-mqueue.mount", "run-lock.mount", "proc-sys-fs-binfmt_misc.automount",
			"getty.target", "getty@.service", "serial-getty@.service", "systemd-ask-password-console.path", "systemd-ask-password-wall.path",
			"e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer", "systemd-tmpfiles-clean.timer",
		},
		Disk: "16G",
		Tree: treeScript, Init: initScript,
	}
}

// env is the recipe as tree.sh gets it.
func (r recipe) env() []string {
	return []string{
		"WB_KERNEL=" + r.Kernel,
		"WB_BOOT_MODULES=" + strings.Join(r.BootModules, " "),
		"WB_PLAIN_MODULES=" + strings.Join(r.PlainModules, " "),
		"WB_LOAD_MODULES=" + strings.Join(r.LoadModules, " "),
		"WB_MASK=" + strings.Join(r.Mask, " "),
		"WB_DISK=" + r.Disk,
	}
}

// digest names the image that the recipe gives.
func (r recipe) digest() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // only strings in it
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
