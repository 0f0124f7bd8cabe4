package guest

import (
	"os"
	"sync"
)

// logFile keeps between one and two times limit bytes of what a service writes: the full file becomes path.1. The machine's
// memory holds it, so it must not grow.
type logFile struct {
	path  string
	limit int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil && l.size+int64(len(p)) > l.limit {
		l.file.Close()
		l.file = nil
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return 0, err
		}
	}
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		l.file, l.size = f, 0
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}
