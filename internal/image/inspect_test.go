package image

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"warmboot"
	"warmboot/internal/kernel/kerneltest"
)

// album is a directory with the files of a good image: kernel, bz, initrd, rootfs.
func album(t *testing.T) (dir string, good warmboot.Image) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "kernel"), kerneltest.ELF(100_000))
	write(t, filepath.Join(dir, "bz"), kerneltest.BzImage(bytes.Repeat([]byte("packed kernel"), 10_000)))
	write(t, filepath.Join(dir, "initrd"), cpio([]entry{{path: "dev", mode: typeDir | 0o755}, {path: "init", mode: typeFile | 0o755, data: bytes.Repeat([]byte("x"), 5001)}}))
	rootfs := filepath.Join(dir, "rootfs")
	mkfs(t, rootfs, "1M", "-O", "^has_journal")
	return dir, warmboot.Image{KernelPath: filepath.Join(dir, "kernel"), InitrdPath: filepath.Join(dir, "initrd"), RootfsPath: rootfs}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// mkfs makes an ext4 file system. args are more arguments of mkfs.ext4.
func mkfs(t *testing.T, path, size string, args ...string) {
	t.Helper()
	tool, err := lookTool("mkfs.ext4")
	if err != nil {
		t.Fatalf("mkfs.ext4 (package e2fsprogs) is needed: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, append(args, "-q", "-b", "4096", path, size)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
}

func TestInspectAcceptsAnImage(t *testing.T) {
	t.Parallel()
	dir, img := album(t)
	got, err := Inspect(t.Context(), img, []string{"/nowhere", dir})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Digest) != 64 || got.SizeBytes < 1<<20 {
		t.Errorf("digest %q, %d bytes", got.Digest, got.SizeBytes)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("bz", link); err != nil {
		t.Fatal(err)
	}
	img.KernelPath, img.InitrdPath = filepath.Join(dir, ".", "x", "..", "link"), ""
	other, err := Inspect(t.Context(), img, []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if other.KernelPath != filepath.Join(dir, "bz") {
		t.Errorf("the path of the kernel is %s, want the link resolved", other.KernelPath)
	}
	if other.Digest == got.Digest {
		t.Error("another kernel and no initrd give the same digest")
	}
}

func TestInspectRefuses(t *testing.T) {
	t.Parallel()
	dir, _ := album(t)
	outside, _ := album(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) []byte {
		b, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	elf, bz, initrd, rootfs := read("kernel"), read("bz"), read("initrd"), read("rootfs")
	write(t, at("empty"), nil)
	write(t, at("text"), bytes.Repeat([]byte("this is text\n"), 100_000))
	write(t, at("half-elf"), elf[:len(elf)/2])
	write(t, at("short-elf"), elf[:len(elf)-1])
	write(t, at("half-bz"), bz[:len(bz)-16])
	write(t, at("bz-header"), bz[:0x250])
	write(t, at("half-initrd"), initrd[:len(initrd)/2])
	write(t, at("bad-initrd"), append(bytes.Clone(initrd[:116]), bytes.Repeat([]byte("?"), 5000)...))
	write(t, at("half-rootfs"), rootfs[:len(rootfs)/2])
	wild := bytes.Clone(rootfs)
	binary.LittleEndian.PutUint32(wild[1024+0x18:], 60)
	write(t, at("wild-rootfs"), wild)
	dirty := bytes.Clone(rootfs)
	dirty[1024+0x60] |= 4
	write(t, at("dirty-rootfs"), dirty)
	write(t, at("open"), elf)
	if err := os.Chmod(at("open"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	sock, err := new(net.ListenConfig).Listen(t.Context(), "unix", at("sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	for name, target := range map[string]string{"way-out": filepath.Join(outside, "kernel"), "loop": "loop", "dangling": "nothing", "null": "/dev/null"} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, at("out-dir")); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name                   string
		kernel, initrd, rootfs string // "" is the good one
		code                   warmboot.Code
		says                   string
	}{
		{name: "relative path", kernel: "kernel", code: warmboot.Invalid, says: "absolute"},
		{name: "NUL in path", kernel: at("kernel\x00"), code: warmboot.Invalid, says: "path"},
		{name: "endless path", kernel: at(strings.Repeat("a/", 5000)), code: warmboot.Invalid, says: "path"},
		{name: "outside", kernel: filepath.Join(outside, "kernel"), code: warmboot.Denied, says: dir},
		{name: "outside and missing", kernel: filepath.Join(outside, "nothing"), code: warmboot.Denied, says: dir},
		{name: "dots lead out", rootfs: dir + "/../../etc/passwd", code: warmboot.Denied, says: dir},
		{name: "a neighbour with the same beginning", kernel: dir + "-2/kernel", code: warmboot.Denied, says: dir},
		{name: "the root itself", kernel: dir, code: warmboot.Denied, says: dir},
		{name: "link leads out", kernel: at("way-out"), code: warmboot.Denied, says: dir},
		{name: "directory link leads out", kernel: at("out-dir/kernel"), code: warmboot.Denied, says: dir},
		{name: "link to a device", rootfs: at("null"), code: warmboot.Denied, says: dir},
		{name: "missing", kernel: at("nothing"), code: warmboot.Invalid, says: "no such file"},
		{name: "below a file", kernel: at("kernel/x"), code: warmboot.Invalid, says: "no such file"},
		{name: "dangling link", kernel: at("dangling"), code: warmboot.Invalid, says: "no such file"},
		{name: "link to itself", kernel: at("loop"), code: warmboot.Invalid, says: "cannot be opened"},
		{name: "missing initrd", initrd: at("nothing"), code: warmboot.Invalid, says: "initrd"},
		{name: "directory", kernel: at("dir"), code: warmboot.Invalid, says: "regular"},
		{name: "pipe", rootfs: at("pipe"), code: warmboot.Invalid, says: "regular"},
		{name: "socket", rootfs: at("sock"), code: warmboot.Invalid, says: ""},
		{name: "writable for all", kernel: at("open"), code: warmboot.Invalid, says: "chmod o-w"},
		{name: "empty", kernel: at("empty"), code: warmboot.Invalid, says: "empty"},
		{name: "text as kernel", kernel: at("text"), code: warmboot.Invalid, says: "not a kernel"},
		{name: "disk as kernel", kernel: at("rootfs"), code: warmboot.Invalid, says: "not a kernel"},
		{name: "half an ELF kernel", kernel: at("half-elf"), code: warmboot.Invalid, says: "truncated"},
		{name: "ELF kernel without its last byte", kernel: at("short-elf"), code: warmboot.Invalid, says: "truncated"},
		{name: "bzImage without its end", kernel: at("half-bz"), code: warmboot.Invalid, says: "truncated"},
		{name: "header of a bzImage", kernel: at("bz-header"), code: warmboot.Invalid, says: "truncated"},
		{name: "dynamic program as kernel", kernel: filepath.Join(dir, "dynamic"), code: warmboot.Invalid, says: "not a kernel"},
		{name: "text as initrd", initrd: at("text"), code: warmboot.Invalid, says: "not an initrd"},
		{name: "half an initrd", initrd: at("half-initrd"), code: warmboot.Invalid, says: "truncated"},
		{name: "damaged initrd", initrd: at("bad-initrd"), code: warmboot.Invalid, says: "damaged"},
		{name: "text as root disk", rootfs: at("text"), code: warmboot.Invalid, says: "not an ext4"},
		{name: "half a root disk", rootfs: at("half-rootfs"), code: warmboot.Invalid, says: "truncated"},
		{name: "senseless superblock", rootfs: at("wild-rootfs"), code: warmboot.Invalid, says: "superblock"},
		{name: "journal not written back", rootfs: at("dirty-rootfs"), code: warmboot.Invalid, says: "e2fsck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kernel == at("dynamic") {
				b, err := os.ReadFile("/bin/sh")
				if err != nil {
					t.Fatal(err)
				}
				write(t, c.kernel, b)
			}
			img := warmboot.Image{KernelPath: at("kernel"), InitrdPath: at("initrd"), RootfsPath: at("rootfs")}
			for from, to := range map[*string]*string{&c.kernel: &img.KernelPath, &c.initrd: &img.InitrdPath, &c.rootfs: &img.RootfsPath} {
				if *from != "" {
					*to = *from
				}
			}
			got, err := Inspect(t.Context(), img, []string{dir})
			if warmboot.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q (%s); want %s and %q in it", err, warmboot.CodeOf(err), c.code, c.says)
			}
			if got.Digest != "" {
				t.Errorf("and yet a digest: %s", got.Digest)
			}
		})
	}
	if _, err := Inspect(t.Context(), warmboot.Image{RootfsPath: at("rootfs")}, []string{dir}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("an image without a kernel: %v", err)
	}
}

// FuzzCheck holds the readers of foreign files to it that no bytes crash them.
func FuzzCheck(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	f.Add(kerneltest.BzImage(nil))
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range []kind{kernelKind, initrdKind, rootfsKind} {
			_ = k.check(t.Context(), bytes.NewReader(b), int64(len(b)))
		}
	})
}
