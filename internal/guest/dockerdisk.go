package guest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
)

// prepareDockerDisk makes what an earlier boot's Docker has left on the data disk fit for ours. It must be done before Docker runs.
func (g *Guest) prepareDockerDisk() {
	g.noAutostart()
	g.mendLogs()
}

// mendLogs cuts off what a machine that ended without warning has left at the end of containers' logs: zeros, because ext4 has kept a file's new
// size but not yet what was written last, or half a line. Docker would go on writing behind that, and never read past it again.
func (g *Guest) mendLogs() {
	logs, _ := filepath.Glob(g.path(dockerDir + "/containers/*/*-json.log"))
	for _, path := range logs {
		if err := cutAfterLastLine(path); err != nil {
			g.Log.Warn("A container's log may be unreadable from its last start on", "file", path, "error", err)
		}
	}
}

// cutAfterLastLine makes a file end where its last whole line ends.
func cutAfterLastLine(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	end := int64(0)
	for piece, at := make([]byte, 64<<10), size; at > 0 && end == 0; {
		from := max(0, at-int64(len(piece)))
		if _, err := f.ReadAt(piece[:at-from], from); err != nil {
			return err
		}
		end = from + int64(bytes.LastIndexByte(piece[:at-from], '\n')) + 1
		if end == from { // no line ends in this piece
			at, end = from, 0
		}
	}
	if end == size {
		return nil
	}
	return f.Truncate(end)
}
