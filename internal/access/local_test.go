package access

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot"
)

// local reads the file and sees that it is as it should be.
func (r *rig) local(root string) string {
	r.Helper()
	info, err := os.Lstat(filepath.Join(root, LocalFile))
	r.must(err)
	if !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
		r.Errorf("the file's mode is %v", info.Mode())
	}
	secret, owner, err := ReadLocal(root)
	r.must(err)
	if owner != os.Geteuid() || !WellFormed(secret) {
		r.Errorf("owner %d, secret %q", owner, secret)
	}
	who, err := r.k.Authenticate(r.Context(), secret)
	r.must(err)
	if who.Role != warmboot.RoleAdmin || who.Expires != nil || !strings.HasPrefix(who.Name, "local-") {
		r.Errorf("it is the token of %+v", who)
	}
	all, err := r.k.Tokens(r.Context())
	r.must(err)
	locals := 0
	for _, t := range all {
		if strings.HasPrefix(t.Name, "local-") {
			locals++
		}
	}
	if locals != 1 {
		r.Errorf("there are %d local tokens", locals)
	}
	entries, err := os.ReadDir(root)
	r.must(err)
	for _, e := range entries {
		if strings.Contains(e.Name(), "token-") {
			r.Errorf("%s is left", e.Name())
		}
	}
	return secret
}

func TestLocalToken(t *testing.T) {
	r := newRig(t, nil)
	root := t.TempDir()
	path := filepath.Join(root, LocalFile)
	ensure := func() string {
		t.Helper()
		r.must(r.k.EnsureLocal(t.Context(), root, "box"))
		return r.local(root)
	}
	first := ensure()
	if !strings.Contains(r.log.String(), "The admin token for this machine is in "+path) {
		t.Errorf("the log is %s", r.log)
	}
	entries, err := r.k.Entries(t.Context(), 0, 10)
	r.must(err)
	if e := entries[0]; len(entries) != 1 || e.Actor != "warmboot serve" || e.Operation != "create-token" || e.EntityID == "" || e.Outcome != warmboot.AuditOK {
		t.Errorf("%+v", e)
	}
	if again := ensure(); again != first {
		t.Error("a token that was good has been replaced")
	}
	last := first
	for name, spoil := range map[string]func() error{
		"lost":     func() error { return os.Remove(path) },
		"empty":    func() error { return os.Truncate(path, 0) },
		"cut off":  func() error { return os.Truncate(path, 20) },
		"readable": func() error { return os.Chmod(path, 0o640) },
		"a link": func() error {
			if err := os.Rename(path, path+".moved"); err != nil {
				return err
			}
			return os.Symlink(path+".moved", path)
		},
		"revoked": func() error { return r.k.RevokeToken(t.Context(), localName("box")) },
		"no admin's": func() error {
			_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "viewer", warmboot.RoleViewer, 0)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(secret), 0o600)
		},
		"foreign": func() error { return os.WriteFile(path, []byte(newSecret()), 0o600) },
		"expired": func() error {
			r.sql(`UPDATE api_tokens SET expires_at = '2020-01-01T00:00:00.000000Z' WHERE name LIKE 'local-%'`)
			later(r.k, time.Hour)
			return nil
		},
	} {
		r.must(spoil())
		next := ensure()
		if next == last {
			t.Errorf("%s: the token is the old one", name)
		}
		if _, err := r.k.Authenticate(t.Context(), last); warmboot.CodeOf(err) != warmboot.Unauthenticated {
			t.Errorf("%s: the old token is still good: %v", name, err)
		}
		last = next
		_ = os.Remove(path + ".moved")
	}
}

func TestLocalTokenOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a file can be given away by root only")
	}
	r := newRig(t, nil)
	root := t.TempDir()
	r.must(r.k.EnsureLocal(t.Context(), root, "box"))
	first := r.local(root)
	r.must(os.Chown(filepath.Join(root, LocalFile), 65534, 65534))
	r.must(r.k.EnsureLocal(t.Context(), root, "box"))
	if r.local(root) == first {
		t.Error("another user has the token")
	}
}

func TestLocalTokenThatCannotBeWritten(t *testing.T) {
	r := newRig(t, nil)
	root := t.TempDir()
	// Nothing can be renamed over a directory that is not empty, not even by root.
	r.must(os.MkdirAll(filepath.Join(root, LocalFile, "x"), 0o700))
	err := r.k.EnsureLocal(t.Context(), root, "box")
	r.wantCode(err, warmboot.Internal, "storage root must be writable")
	entries, err := r.k.Entries(t.Context(), 0, 1)
	r.must(err)
	if entries[0].Outcome != "internal" {
		t.Errorf("%+v", entries[0])
	}
	left, err := os.ReadDir(root)
	r.must(err)
	if len(left) != 1 {
		t.Errorf("left are %v", left)
	}
	_, _, err = ReadLocal(filepath.Join(root, "nowhere"))
	if !os.IsNotExist(err) {
		t.Error(err)
	}
}

func TestLocalFileIsNoPipe(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, LocalFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadLocal(root); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a pipe, on which a reader could wait for ever: %v", err)
	}
}
