package warmboot

import "time"

// Image is a runtime image: the kernel, initrd and read-only root disk with which a container's microVM boots.
// It is immutable once registered; a changed image is another image.
type Image struct {
	ID         ID
	Name       string // unique
	KernelPath string // a bzImage or an ELF vmlinux
	InitrdPath string // may be empty for a kernel that mounts the root by itself
	RootfsPath string // ext4, never written
	// Digest identifies the content: SHA-256, in hexadecimal, over the digests of kernel, initrd and rootfs.
	Digest    string
	SizeBytes int64  // of the three files
	Recipe    string // digest of the recipe it was built from; empty for an image that the user made
	CreatedAt time.Time
}
