package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// entry is a file of an initrd. Its mode is in Unix form, with the type.
type entry struct {
	path  string
	mode  uint32
	major uint32
	minor uint32
	data  []byte
}

// Unix file types.
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeChar = 0o020000
)

// writeInitrd writes the archive that the kernel unpacks into memory: the guest agent as /init, and the modules that it needs to reach
// the root disk. Not compressed: that would cost an emulated machine more time than it saves.
func writeInitrd(path string, guest []byte, modules string) error {
	entries := []entry{
		{path: "dev", mode: typeDir | 0o755},
		{path: "dev/console", mode: typeChar | 0o600, major: 5, minor: 1}, // what PID 1 has as its standard streams
		{path: "proc", mode: typeDir | 0o755},
		{path: "sys", mode: typeDir | 0o755},
		{path: "newroot", mode: typeDir | 0o755},
		{path: "init", mode: typeFile | 0o755, data: guest},
		{path: "lib", mode: typeDir | 0o755},
		{path: "lib/modules", mode: typeDir | 0o755},
	}
	files, err := os.ReadDir(modules)
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(modules, f.Name()))
		if err != nil {
			return err
		}
		entries = append(entries, entry{path: "lib/modules/" + f.Name(), mode: typeFile | 0o644, data: data})
	}
	return os.WriteFile(path, cpio(entries), 0o644)
}

// cpio makes an archive in the "newc" format, which the kernel's documentation describes.
func cpio(entries []entry) []byte {
	var w bytes.Buffer
	date, _ := strconv.ParseUint(sourceDate, 10, 32)
	pad := func(n int) { w.WriteString("\x00\x00\x00"[:(4-n%4)%4]) }
	one := func(inode int, e entry) {
		links := 1
		if e.mode&0o170000 == typeDir {
			links = 2
		}
		// magic, inode, mode, uid, gid, links, mtime, size, device (2), device node (2), length of the name, no checksum
		fmt.Fprintf(&w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			inode, e.mode, 0, 0, links, date, len(e.data), 0, 0, e.major, e.minor, len(e.path)+1, 0)
		w.WriteString(e.path)
		w.WriteByte(0)
		pad(110 + len(e.path) + 1)
		w.Write(e.data)
		pad(len(e.data))
	}
	for i, e := range entries {
		one(i+1, e)
	}
	one(0, entry{path: "TRAILER!!!"})
	return w.Bytes()
}
