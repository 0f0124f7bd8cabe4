package access

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"warmboot"
	"warmboot/internal/durable"
)

// LocalFile is the name, below the storage root, of the file with the local admin token.
const LocalFile = "admin.token"

// localFileLimit is far more than a secret and a line end need, in bytes.
const localFileLimit = 4096

// EnsureLocal sees that the file below root holds the secret of a valid admin token that only our user can read. server tells the servers
// that share a database apart: each has a token of its own. Where it does
// not (at the first start, after it was lost, with another database), a new token is made, and takes the old one's place.
// Whoever can write there owns the machine already, so that gives nobody more than they have.
func (k *Keeper) EnsureLocal(ctx context.Context, root, server string) error {
	const op = "make local token"
	path := filepath.Join(root, LocalFile)
	why, err := k.localFault(ctx, path)
	if err != nil {
		return &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Err: err}
	}
	if why == "" {
		return nil
	}
	name := localName(server)
	change, err := k.Begin(ctx, itself, warmboot.AuditEntry{Operation: "create-token", EntityType: "token", EntityName: name})
	if err != nil {
		return err
	}
	token, secret, err := k.replaceLocal(ctx, name, path)
	if err == nil {
		_, err = k.Authenticate(ctx, secret) // so that it is known before anybody else asks
	}
	if err != nil {
		change.End(string(warmboot.CodeOf(err)))
		return &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Err: err}
	}
	change.Entity(string(token.ID), token.Name)
	change.End(warmboot.AuditOK)
	k.log.Info("The admin token for this machine is in "+path+", where warmboot's commands find it", "why", why, "token", token.Name)
	return nil
}

// localFault tells what is wrong with the file; nothing if it is empty.
func (k *Keeper) localFault(ctx context.Context, path string) (string, error) {
	secret, owner, mode, err := readLocal(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there was none", nil
	case err != nil:
		return err.Error(), nil //nolint:nilerr // it is what is wrong with the file, and no fault of looking
	case owner != os.Geteuid() || mode.Perm()&0o077 != 0:
		return fmt.Sprintf("others could read the last one: its mode was %v and its owner %d", mode.Perm(), owner), nil
	}
	who, err := k.Authenticate(ctx, secret)
	switch {
	case warmboot.CodeOf(err) == warmboot.Unauthenticated:
		return "the last one is not valid: " + err.Error(), nil
	case err != nil:
		return "", err
	case who.Role != warmboot.RoleAdmin:
		return "the last one was no admin's", nil
	}
	return "", nil
}

// replaceLocal makes a token and writes its secret to path. Between the two a crash leaves a token that nobody has, which the next
// start replaces.
func (k *Keeper) replaceLocal(ctx context.Context, name, path string) (*warmboot.Token, string, error) {
	if err := k.RevokeToken(ctx, name); err != nil && warmboot.CodeOf(err) != warmboot.NotFound {
		return nil, "", err
	}
	token, secret, err := k.createToken(ctx, itself, name, warmboot.RoleAdmin, 0)
	if err != nil {
		return nil, "", err
	}
	if err := durable.Replace(path, []byte(secret+"\n"), 0o600); err != nil {
		return nil, "", warmboot.Errorf(warmboot.Internal, "", "the token cannot be written to %s: %w; the storage root must be writable for us", path, err)
	}
	return token, secret, nil
}

var notInName = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)

// localName is the name of a server's local token.
func localName(server string) string {
	name := localPrefix + cmp.Or(notInName.ReplaceAllString(server, "-"), "unnamed")
	return name[:min(len(name), 63)]
}

// ReadLocal reads the secret in the file below root, and tells which user owns it: nobody but that user's server should be given it.
func ReadLocal(root string) (secret string, owner int, err error) {
	secret, owner, _, err = readLocal(filepath.Join(root, LocalFile))
	return secret, owner, err
}

func readLocal(path string) (secret string, owner int, mode fs.FileMode, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", 0, 0, err
	}
	if !info.Mode().IsRegular() {
		return "", 0, 0, fmt.Errorf("%s is no regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, localFileLimit))
	if err != nil {
		return "", 0, 0, err
	}
	return string(bytes.TrimSpace(text)), int(info.Sys().(*syscall.Stat_t).Uid), info.Mode(), nil
}
