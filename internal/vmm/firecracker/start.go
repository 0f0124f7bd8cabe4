package firecracker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"warmboot/internal/netns"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// starter is how Firecracker's process is started. Either way it works in a directory of its own, its root, and is told of everything
// by names relative to that: a snapshot keeps them, and they must mean each clone's own files.
type starter interface {
	// name is how the process will know a file: p.name if that is fixed, else any.
	name(p placed) string
	// start makes a root, which is the owner's, places the files there, and runs Firecracker in it. Before that it calls ready with the root, which
	// ready keeps. What it made is released by Driver.release, after an error too.
	start(o order, ready func(root *os.File) error) (*process.Process, error)
}

// order is what is to be started.
type order struct {
	binary string
	args   []string
	spec   vmm.Spec
	files  []placed
	// Firecracker's standard output and standard error; both must be such that they bear our end (process.Output): Firecracker hangs for
	// good in its handler of SIGPIPE, which itself prints.
	console, said *os.File
}

// placed is a file of ours that a machine's process is to find. Its name in the root is fixed if a snapshot keeps it.
type placed struct {
	name, target string
	fixed        bool
	writable     bool
}

// direct starts the binary itself, as the machine's owner. There is no wall around it but its user and its own seccomp filter, so
// this is for development, and for tests.
type direct struct{}

// rootDir is the root's name in a machine's directory. The directory is ours alone, so nobody can put something else in its place.
const rootDir = "root"

func (direct) name(p placed) string {
	if p.fixed {
		return p.name
	}
	return p.target
}

func (direct) start(o order, ready func(*os.File) error) (*process.Process, error) {
	path := filepath.Join(o.spec.Dir, rootDir)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	if o.spec.Owner.Confined() {
		if err := os.Chown(path, int(o.spec.Owner.UID), int(o.spec.Owner.GID)); err != nil {
			return nil, err
		}
	}
	for _, p := range o.files {
		if !p.fixed {
			continue // a symbolic link takes a tenth of a millisecond
		}
		// A hard link would change the file's ctime, by which snapshot.Verifier knows that nobody has touched it.
		if err := os.Symlink(p.target, filepath.Join(path, p.name)); err != nil {
			return nil, err
		}
	}
	root, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := ready(root); err != nil {
		return nil, err
	}
	cmd := exec.Command(o.binary, append([]string{"--id", o.spec.ID}, o.args...)...)
	// By its descriptor, which the child still has when it changes there: the owner may not pass through the directories above.
	cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = o.console, o.said
	var p *process.Process
	err = netns.Do(o.spec.Network.Namespace, func() (err error) {
		p, err = process.Start(cmd, o.spec.Owner, nil)
		return err
	})
	return p, err
}
