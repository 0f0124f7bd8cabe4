// Command systemdimage makes the runtime image with systemd that the tests boot, as an operator would make one, or finds the one that an
// earlier run has left, and prints its directory:
//
//	WARMBOOT_TEST_SYSTEMD_IMAGE=$(go run ./test/systemdimage bin/warmboot-guest)
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// cache must be where the users that VMMs run as can reach it, which a checkout in somebody's home is not.
	cache  = "/var/tmp/warmboot-test-images"
	script = "deploy/runtime-image/build"
	unit   = "deploy/systemd/warmboot-guest.service"
	hook   = "test/systemdimage/hook"
	agent  = "/usr/sbin/warmboot-guest"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: systemdimage GUEST-BINARY")
		os.Exit(2)
	}
	dir, err := build(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "systemdimage:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}

// build makes an image in two steps, so that a new guest agent costs a second and not an installation.
func build(guest string) (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, ".systemd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and so unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	base, err := named("systemd-base-", script, unit, hook)
	if err != nil {
		return "", err
	}
	image, err := named("systemd-", script, unit, hook, guest)
	if err != nil {
		return "", err
	}
	if err := once(base, func() error {
		cmd := exec.Command(script, base, hook)
		cmd.Env = append(os.Environ(), "WARMBOOT_GUEST="+guest)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		return cmd.Run()
	}); err != nil {
		return "", err
	}
	return image, once(image, func() error { return replaceGuest(base, image, guest) })
}

// named is the directory of what is made of the files.
func named(prefix string, files ...string) (string, error) {
	h := sha256.New()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(text)
		h.Write(sum[:])
	}
	return filepath.Join(cache, prefix+hex.EncodeToString(h.Sum(nil))[:16]), nil
}

// once makes dir unless it is there.
func once(dir string, write func() error) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	start := time.Now()
	err := write()
	fmt.Fprintf(os.Stderr, "runtime image with systemd: %s made in %.1fs\n", filepath.Base(dir), time.Since(start).Seconds())
	return err
}

// replaceGuest copies an image and puts another guest agent on its root disk, without mounting it.
func replaceGuest(base, image, guest string) error {
	draft := image + ".draft"
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	if err := os.Mkdir(draft, 0o755); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(draft) }() // gone unless something failed
	for _, f := range []string{"vmlinuz", "initrd.img"} {
		if err := os.Link(filepath.Join(base, f), filepath.Join(draft, f)); err != nil {
			return err
		}
	}
	rootfs := filepath.Join(draft, "rootfs.ext4")
	if out, err := exec.Command("cp", "--sparse=always", filepath.Join(base, "rootfs.ext4"), rootfs).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	cmd := exec.Command("/usr/sbin/debugfs", "-w", "-f", "-", rootfs)
	cmd.Stdin = strings.NewReader(strings.Join([]string{
		"rm " + agent, "write " + guest + " " + agent,
		"set_inode_field " + agent + " mode 0100755", "set_inode_field " + agent + " uid 0", "set_inode_field " + agent + " gid 0",
	}, "\n") + "\n")
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, said)
	}
	// debugfs succeeds whatever happens; so ask for what it has written.
	want, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	is, err := exec.Command("/usr/sbin/debugfs", "-R", "cat "+agent, rootfs).Output()
	if err != nil || !bytes.Equal(is, want) {
		return fmt.Errorf("the guest agent could not be written onto the root disk (%w); debugfs said: %s", err, said)
	}
	return os.Rename(draft, image)
}
