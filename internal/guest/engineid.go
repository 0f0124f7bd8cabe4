package guest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"warmboot"
)

// Docker names itself by its engine id, which swarm, licence counters and monitoring take for the machine. dockerd reads it once,
// when it starts, from a file, and keeps it as a string; restarting dockerd in each clone would cost seconds. So a clone's id is
// written over the old one where the running dockerd keeps it. That is safe because all ids are equally long, a Go
// string's bytes never move (Go's collector does not compact), and each place has been proven at quiesce: with another
// id in it, Docker itself answered that id.

const engineIDPath = "/var/lib/docker/engine-id"

// engineMemory is where a running dockerd keeps its engine id.
type engineMemory struct {
	pid       int
	id        string // what it is now
	addresses []int64
}

// findEngineID finds, in the memory of process pid, every place of id that decides what ask answers.
func findEngineID(ctx context.Context, pid int, id string, ask func(context.Context) (string, error)) (*engineMemory, error) {
	mem, err := os.OpenFile(procPath(pid, "mem"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	candidates, err := searchMemory(mem, pid, []byte(id))
	if err != nil {
		return nil, err
	}
	found := &engineMemory{pid: pid, id: id}
	probe := probeID(len(id))
	for _, address := range candidates {
		// Copies that nobody refers to any more may be reused at any time; such a one is no longer the id.
		if overwrite(mem, address, id, probe) != nil {
			continue
		}
		answer, askErr := ask(ctx)
		if err := overwrite(mem, address, probe, id); err != nil && (askErr != nil || answer == probe) {
			return nil, fmt.Errorf("put the id back: %w", err)
		}
		if askErr != nil {
			return nil, askErr
		}
		if answer == probe {
			found.addresses = append(found.addresses, address)
		}
	}
	if len(found.addresses) == 0 {
		return nil, fmt.Errorf("none of the %d places in the memory of process %d that hold the id decides what Docker answers", len(candidates), pid)
	}
	answer, err := ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its id after the search: %w", err)
	}
	if answer != id {
		return nil, fmt.Errorf("after the search Docker answers the id %q instead of %q", answer, id)
	}
	return found, nil
}

// replace writes a new id of the same length into the process and reads it back.
func (e *engineMemory) replace(id string) error {
	if len(id) != len(e.id) {
		return fmt.Errorf("the new id %q has %d bytes and Docker's has %d", id, len(id), len(e.id))
	}
	mem, err := os.OpenFile(procPath(e.pid, "mem"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	for _, address := range e.addresses {
		if err := overwrite(mem, address, e.id, id); err != nil {
			return err
		}
	}
	e.id = id
	return nil
}

// overwrite replaces old by new, if it is old that is there, and reads it back.
func overwrite(mem *os.File, address int64, old, new string) error {
	is := make([]byte, len(old))
	if _, err := mem.ReadAt(is, address); err != nil {
		return err
	}
	if string(is) != old {
		return fmt.Errorf("there is %q at %#x instead of %q; the process has changed", is, address, old)
	}
	if _, err := mem.WriteAt([]byte(new), address); err != nil {
		return err
	}
	if _, err := mem.ReadAt(is, address); err != nil {
		return err
	}
	if string(is) != new {
		return fmt.Errorf("%q written at %#x reads back as %q", new, address, is)
	}
	return nil
}

// searchMemory returns the addresses of needle in the writable anonymous memory of a process.
func searchMemory(mem *os.File, pid int, needle []byte) ([]int64, error) {
	maps, err := os.Open(procPath(pid, "maps"))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var found []int64
	window := make([]byte, 1<<20)
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		begin, end, ok := anonymousRange(lines.Text())
		if !ok {
			continue
		}
		// Windows overlap by all but one byte of the needle, so each place is seen once.
		for at := begin; at < end; at += int64(len(window) - len(needle) + 1) {
			n, err := mem.ReadAt(window[:min(int64(len(window)), end-at)], at)
			if err != nil && n == 0 {
				break // gone meanwhile
			}
			for from := 0; ; {
				i := bytes.Index(window[from:n], needle)
				if i < 0 {
					break
				}
				found = append(found, at+int64(from+i))
				from += i + 1
			}
		}
	}
	return found, lines.Err()
}

// anonymousRange reads a line of /proc/PID/maps: begin-end perms offset device inode [path].
func anonymousRange(line string) (begin, end int64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 || f[1] != "rw-p" || f[4] != "0" {
		return 0, 0, false
	}
	if len(f) > 5 && strings.HasPrefix(f[5], "[v") { // [vvar] and its like cannot be read
		return 0, 0, false
	}
	from, to, found := strings.Cut(f[0], "-")
	b, err1 := strconv.ParseInt(from, 16, 64)
	e, err2 := strconv.ParseInt(to, 16, 64)
	return b, e, found && err1 == nil && err2 == nil
}

// probeID is a random id that looks like nobody's.
func probeID(n int) string {
	return (rand.Text() + rand.Text() + rand.Text())[:n]
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// setEngineID makes id Docker's engine id, in its file and in the running dockerd, and returns what it is now: "" if Docker
// has never run. An empty id changes nothing. The caller holds g.mu.
func (g *Guest) setEngineID(id string) (string, error) {
	const op = "set Docker engine id"
	is := g.engineIDFile()
	if g.engine != nil && g.engine.id != is {
		return "", warmboot.Errorf(warmboot.Internal, op, "Docker's file says %q and its memory %q", is, g.engine.id)
	}
	if id == "" || id == is {
		return is, nil
	}
	switch {
	case g.engine != nil:
		if err := g.engine.replace(id); err != nil {
			return "", &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the Docker of the snapshot is not there any more", Err: err}
		}
		if err := g.writeEngineID(id); err != nil {
			return "", internal(op, err)
		}
	case g.dockerd != nil:
		// A cold boot with a disk whose engine is to have another name: dockerd reads the file when it starts.
		g.dockerd.halt()
		err := g.writeEngineID(id)
		g.dockerd.start()
		if err != nil {
			return "", internal(op, err)
		}
	default: // the same, with a dockerd that the machine's init starts
		if err := g.writeEngineID(id); err != nil {
			return "", internal(op, err)
		}
		if err := g.restartDocker(context.Background()); err != nil {
			return "", warmboot.Errorf(warmboot.Conflict, op, "Docker calls itself %q and cannot be started again under its new name: %w", is, err)
		}
	}
	return g.engineIDFile(), nil
}

func (g *Guest) writeEngineID(id string) error {
	path := g.path(engineIDPath)
	if err := os.MkdirAll(filepath.Dir(path), 0o710); err != nil {
		return err
	}
	return writeFile(path, id)
}
