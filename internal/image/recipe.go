package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	_ "embed"
)

// formatVersion is part of every recipe. Raise it when the code that makes an image changes what comes out.
const formatVersion = 1

// sourceDate is the latest time stamp of files in an image, and that of the file system: seconds since 1970. Any
// constant would do; one in the past cannot confuse a guest whose clock is not set yet.
const sourceDate = "1735689600"

// treeScript makes the base out of the tree that mmdebstrap has installed.
//
//go:embed tree.sh
var treeScript string

// recipe is all that decides the content of a base, except for the versions that the mirror has at the time.
type recipe struct {
	Format      int      `json:"format"`
	Suite       string   `json:"suite"`
	Mirror      string   `json:"mirror"`
	Packages    []string `json:"packages"`
	Kernel      string   `json:"kernel"`       // package that depends on the current kernel
	Exclude     []string `json:"exclude"`      // paths that dpkg does not unpack
	Remove      []string `json:"remove"`       // shell patterns below / that are removed afterwards
	Modules     []string `json:"modules"`      // extended regular expressions of the modules to keep; what they need is kept too
	BootModules []string `json:"boot_modules"` // modules of the initrd, in order
	Script      string   `json:"script"`
}

func newRecipe(suite, mirror string) recipe {
	return recipe{
		Format:   formatVersion,
		Suite:    suite,
		Mirror:   mirror,
		Packages: []string{"docker.io", "containerd", "runc", "iptables", "ca-certificates", "kmod"},
		Kernel:   "linux-image-cloud-amd64",
		Exclude: []string{
			"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
			"/usr/share/zoneinfo/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*", "/usr/share/fish/*",
		},
		Remove: []string{
			// containerd's debugging client and its outdated shims; the proxy for published ports of bridged containers
			"usr/bin/ctr", "usr/bin/containerd-shim", "usr/bin/containerd-shim-runc-v1", "usr/sbin/docker-proxy",
			// the package manager, its data, and perl, which only package scripts use
			"usr/bin/apt*", "usr/lib/apt", "usr/lib/*/libapt-*", "usr/bin/sqv", "var/lib/apt", "var/cache/apt", "var/lib/dpkg",
			"usr/bin/dpkg*", "usr/lib/dpkg", "usr/share/dpkg", "etc/apt", "etc/dpkg", "usr/sbin/policy-rc.d",
			"usr/bin/perl*", "usr/lib/*/perl-base", "usr/share/perl5", "usr/share/debconf", "var/cache/debconf", "var/cache/ldconfig",
		},
		Modules: []string{
			"^kernel/(arch|crypto|lib)/",
			"^kernel/net/(802|8021q|bridge|core|ipv4|ipv6|key|llc|netfilter|netlink|packet|sched|tls|unix|vmw_vsock|xfrm)/",
			"^kernel/fs/(binfmt_misc|btrfs|fuse|isofs|lockd|netfs|nfs|nfs_common|nls|overlayfs|squashfs|xfs)",
			"^kernel/drivers/virtio/",
			"^kernel/drivers/(block/(loop|nbd|virtio_blk|zram)|char/hw_random/virtio-rng|md/dm-)",
			"^kernel/drivers/net/(bonding|dummy|geneve|ifb|ipvlan|macvlan|macvtap|net_failover|tap|tun|veth|virtio_net|vxlan|wireguard)",
		},
		// Firecracker shows its devices on the MMIO bus, QEMU on PCI, which is built in.
		BootModules: []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "overlay"},
		Script:      treeScript,
	}
}

// digest is the SHA-256 of the recipe's canonical form, in hexadecimal.
func (r recipe) digest() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // only strings in it
	}
	return digestOf(text)
}

// imageRecipe is the digest of the recipe of an image: a base's recipe, the packages that it had at the time, and one guest agent.
func imageRecipe(base, packages, guest string) string {
	return digestOf([]byte(base + "\n" + packages + "\n" + guest + "\n"))
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// uuidOf makes a file system's UUID out of a recipe's digest, so that the same recipe gives the same file system.
func uuidOf(digest string) string {
	return strings.Join([]string{digest[:8], digest[8:12], "8" + digest[13:16], "8" + digest[17:20], digest[20:32]}, "-")
}
