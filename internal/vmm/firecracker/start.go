package firecracker

import (
	"errors"
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
	// prepare makes the root of a machine, empty and its owner's, and says where it is.
	prepare(spec vmm.Spec) (root string, err error)
	// place lets the process find a file of ours, and returns by which name: p.name if that is fixed, else by any.
	place(root string, p placed) (string, error)
	// displace takes it away again.
	displace(root string, p placed) error
	// start runs Firecracker in the root. Its standard output goes to console and its standard error to said; both must be such that they bear
	// our end (process.Output): Firecracker hangs for good in its handler of SIGPIPE, which itself prints.
	start(binary string, args []string, root string, spec vmm.Spec, console, said *os.File) (*process.Process, error)
	// release removes a root and everything in it. One that is not there is no error.
	release(root string) error
}

// placed is a file of ours that a machine's process is to find. Its name in the root is fixed if a snapshot keeps it.
type placed struct {
	name, target string
	fixed        bool
}

// direct starts the binary itself, as the machine's owner. There is no wall around it but its user and its own seccomp filter, so
// this is for hosts without the jailer, and for tests.
type direct struct{}

// rootDir is the root's name in a machine's directory. The directory is ours alone, so nobody can put something else in its place.
const rootDir = "root"

func (direct) prepare(spec vmm.Spec) (string, error) {
	root := filepath.Join(spec.Dir, rootDir)
	if err := os.Mkdir(root, 0o700); err != nil {
		return "", err
	}
	if spec.Owner.Confined() {
		if err := os.Chown(root, int(spec.Owner.UID), int(spec.Owner.GID)); err != nil {
			return "", errors.Join(err, os.Remove(root))
		}
	}
	return root, nil
}

// place makes a symbolic link where a name is needed, which is a tenth of a millisecond each time. (A hard link would change the file's ctime, by
// which snapshot.Verifier knows that nobody has touched it.)
func (direct) place(root string, p placed) (string, error) {
	if !p.fixed {
		return p.target, nil
	}
	return p.name, os.Symlink(p.target, filepath.Join(root, p.name))
}

func (direct) displace(root string, p placed) error {
	if !p.fixed {
		return nil
	}
	return os.Remove(filepath.Join(root, p.name))
}

func (direct) start(binary string, args []string, root string, spec vmm.Spec, console, said *os.File) (*process.Process, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command(binary, args...)
	// By its descriptor, which the child still has when it changes there: the owner may not pass through the directories above.
	cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = console, said
	var p *process.Process
	err = netns.Do(spec.Network.Namespace, func() (err error) {
		p, err = process.Start(cmd, spec.Owner, nil)
		return err
	})
	return p, err
}

func (direct) release(root string) error {
	return os.RemoveAll(root)
}
