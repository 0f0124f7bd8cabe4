// Package localregistry serves a small OCI image from a real registry on this machine's loopback, for the demo, the benchmark and
// the end-to-end tests: so that they pull, as every user does, and need no network.
package localregistry

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/subtle"
	"debug/elf"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"warmboot"
)

// Config says how the registry behaves.
type Config struct {
	Listen             string // "127.0.0.1:0" if empty
	Username, Password string // asked of everybody if set
}

// Registry is a registry that runs.
type Registry struct {
	Host   string // "127.0.0.1:34567": what stands before the first slash of an image reference
	Image  string // reference of the busybox image
	server *http.Server
}

// Serve starts a registry and pushes the busybox image into it.
func Serve(ctx context.Context, c Config) (*Registry, error) {
	const op = "serve registry"
	img, err := busybox()
	if err != nil {
		return nil, err
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp4", c.Listen)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	r := &Registry{Host: l.Addr().String()}
	r.Image = r.Host + "/busybox:latest"
	r.server = &http.Server{Handler: demandLogin(c, registry.New(registry.Logger(log.New(io.Discard, "", 0))))}
	go func() { _ = r.server.Serve(l) }() // ends with ErrServerClosed, by Close
	ref, err := name.ParseReference(r.Image, name.Insecure)
	if err == nil {
		err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: c.Username, Password: c.Password}))
	}
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: errors.Join(err, r.Close())}
	}
	return r, nil
}

// Close ends the registry.
func (r *Registry) Close() error { return r.server.Close() }

// demandLogin asks for HTTP Basic authentication (RFC 7617), as the registry protocol allows.
func demandLogin(c Config, next http.Handler) http.Handler {
	if c.Username == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(c.Username+":"+c.Password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="warmboot"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, req)
	})
}

// applets are the commands that the image has.
var applets = []string{"sh", "echo", "cat", "ls", "sleep", "true", "false", "env", "hostname", "date", "httpd", "nc", "wget", "id", "ps", "kill", "head", "tail", "grep", "mkdir", "touch", "seq", "dd", "od", "uname", "yes"}

// busybox is an image of the host's static busybox, which Debian has in the package busybox-static.
func busybox() (v1.Image, error) {
	const op = "make busybox image"
	missing := func(why string) error {
		return warmboot.Errorf(warmboot.Unavailable, op, "%s; install it with `apt-get install busybox-static`, or name an image of your own", why)
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, missing("there is no busybox on this machine")
	}
	bin, err := os.ReadFile(path)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	if f, err := elf.NewFile(bytes.NewReader(bin)); err != nil || f.Section(".interp") != nil {
		return nil, missing(path + " is not statically linked")
	}
	layer, err := layerOf(bin)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}})
	}
	if err == nil {
		var file *v1.ConfigFile
		if file, err = img.ConfigFile(); err == nil {
			file = file.DeepCopy()
			file.Architecture, file.OS = "amd64", "linux"
			img, err = mutate.ConfigFile(img, file)
		}
	}
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	return img, nil
}

func layerOf(busybox []byte) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h *tar.Header, content string) error {
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(w, strings.NewReader(content))
		return err
	}
	for _, dir := range []string{"bin/", "etc/", "root/"} {
		if err := add(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, ""); err != nil {
			return nil, err
		}
	}
	if err := add(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, ""); err != nil {
		return nil, err
	}
	if err := add(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}, string(busybox)); err != nil {
		return nil, err
	}
	for _, a := range applets {
		if err := add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, ""); err != nil {
			return nil, err
		}
	}
	const passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	if err := add(&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))}, passwd); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}
