package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"warmboot"
)

// op names a build in errors.
const op = "build runtime image"

// Config is what Build needs to know.
type Config struct {
	Dir         string         // where images and bases are kept; made if it is missing. Virtual machines' users must be able to reach it
	Suite       string         // Debian suite, "trixie"
	Mirror      string         // URL of the only package source; empty means Debian's own, with its security updates
	GuestBinary string         // path of warmboot-guest, statically linked
	NoCache     bool           // install the packages anew, as new as the mirror has them, even if a base is there
	Progress    func(Progress) // called as the build goes on, by one goroutine at a time; may be nil
	Log         *slog.Logger
}

// Built is a finished runtime image.
type Built struct {
	Image  warmboot.Image // without ID and Name
	Cached bool           // it was there already
	Steps  []Step         // what took how long, of what was not there yet
}

// Step is a timed part of a build.
type Step struct {
	Name     string
	Duration time.Duration
}

// Build makes a runtime image, or returns the one in Dir when one with the same recipe is there. An image that is whole is never replaced: NoCache
// gives another one if the mirror has newer packages, and the same one if not. Builds in one Dir wait for each other. On
// error Dir holds nothing of the build; a base that was finished stays. A host without a needed tool, and a mirror that does
// not answer, are Unavailable errors; a full disk is Exhausted; an argument that cannot work is Invalid.
func Build(ctx context.Context, cfg Config) (Built, error) {
	if err := cfg.check(); err != nil {
		return Built{}, err
	}
	guest, err := readGuest(cfg.GuestBinary)
	if err != nil {
		return Built{}, err
	}
	b := &build{Config: cfg, guest: guest, base: newRecipe(cfg.Suite, cfg.Mirror)}
	b.baseDigest = b.base.digest()

	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return Built{}, ioError(err)
	}
	b.progress("waiting for another build", 0, "")
	unlock, err := Lock(ctx, filepath.Join(cfg.Dir, ".lock"))
	if err != nil {
		return Built{}, asError(err)
	}
	defer unlock()
	built, err := b.run(ctx)
	if err != nil {
		return Built{}, asError(err)
	}
	b.progress("finished", 1, "")
	return built, nil
}

type build struct {
	Config
	guest      []byte
	base       recipe
	baseDigest string
	recipe     string // of the image; known once the base is there
	reported   float64
	steps      []Step
}

// run does the work, alone in Dir.
func (b *build) run(ctx context.Context) (Built, error) {
	base, begin := filepath.Join(b.Dir, "base-"+b.baseDigest[:16]), 0.0
	if _, err := os.Stat(base); b.NoCache || errors.Is(err, fs.ErrNotExist) {
		begin = 0.9
		if err := b.prepare(); err != nil {
			return Built{}, err
		}
		err := b.timed("base", func() error {
			return Publish(base, func(draft string) error {
				return makeBase(ctx, b.base, draft, func(f float64, step, detail string) { b.progress(step, f*begin, detail) })
			})
		})
		if err != nil {
			return Built{}, err
		}
	} else if err != nil {
		return Built{}, ioError(err)
	}
	packages, err := os.ReadFile(filepath.Join(base, basePackages))
	if err != nil {
		return Built{}, ioError(err)
	}
	b.recipe = imageRecipe(b.baseDigest, digestOf(packages), digestOf(b.guest))

	final := filepath.Join(b.Dir, b.recipe[:16])
	img, err := openCached(final, b.recipe)
	if err == nil {
		return Built{Image: img, Cached: true, Steps: b.steps}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		b.Log.Warn("the runtime image in the cache is not usable and is built again", "dir", final, "reason", err)
	}
	if err := b.prepare(); err != nil {
		return Built{}, err
	}
	err = b.timed("image", func() error {
		b.progress("adding warmboot-guest", begin, "")
		return Publish(final, func(draft string) error { return b.assemble(ctx, base, draft) })
	})
	if err != nil {
		return Built{}, err
	}
	img, err = openCached(final, b.recipe)
	if err != nil {
		return Built{}, err
	}
	b.Log.Info("Runtime image built", "dir", final, "digest", img.Digest, "bytes", img.SizeBytes, "steps", b.steps)
	return Built{Image: img, Steps: b.steps}, nil
}

// Ready reports what this host lacks to install packages and make disks of them below dir: a tool, or, without root, a way to dir that
// others may pass.
func Ready(dir string) error {
	if err := needTools(); err != nil || os.Geteuid() == 0 {
		return err
	}
	return needPassage(dir)
}

// prepare makes sure that a build can begin, and that nothing of a crashed one is left.
func (b *build) prepare() error {
	if err := Ready(b.Dir); err != nil {
		return err
	}
	if err := RemoveDrafts(b.Dir); err != nil {
		b.Log.Warn("what a crashed build has left cannot be removed; remove it as root", "error", err)
	}
	return nil
}

// needPassage reports an Invalid error that names a directory on the way to dir which other users may not pass. Without
// root, packages are fetched and unpacked as such users; and the users of virtual machines have to get to their files anyway.
func needPassage(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return ioError(err)
		}
		if st.Mode().Perm()&0o001 == 0 {
			return warmboot.Errorf(warmboot.Invalid, op, "other users may not pass %s, so packages cannot be installed below it without root; run chmod o+x on it, or choose another storage root", dir)
		}
		if dir == "/" {
			return nil
		}
	}
}

// timed runs a step and notes how long it took.
func (b *build) timed(name string, f func() error) error {
	start := time.Now()
	err := f()
	b.steps = append(b.steps, Step{name, time.Since(start)})
	return err
}

func (b *build) progress(step string, fraction float64, detail string) {
	b.reported = max(b.reported, fraction)
	if b.Progress != nil {
		b.Progress(Progress{Step: step, Fraction: b.reported, Detail: detail})
	}
}

// suiteName keeps anything out that mmdebstrap could take for an option.
var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)

func (c Config) check() error {
	if !filepath.IsAbs(c.Dir) || strings.ContainsAny(c.Dir, "'\n") {
		return warmboot.Errorf(warmboot.Invalid, op, "the images directory %q is not an absolute path without quotes", c.Dir)
	}
	if !suiteName.MatchString(c.Suite) {
		return warmboot.Errorf(warmboot.Invalid, op, "%.80q is not the name of a Debian suite; try trixie", c.Suite)
	}
	if c.Mirror != "" {
		u, err := url.Parse(c.Mirror)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(c.Mirror, " \t\r\n'\"") {
			return warmboot.Errorf(warmboot.Invalid, op, "%.200q is not the URL of a package mirror; it looks like http://deb.debian.org/debian", c.Mirror)
		}
	}
	if runtime.GOARCH != "amd64" {
		return warmboot.Errorf(warmboot.Invalid, op, "runtime images can be built on amd64 only, this is %s; register one that you made with `warmboot image register`", runtime.GOARCH)
	}
	return nil
}

// readGuest reads the guest agent and makes sure that it can run where there are no libraries.
func readGuest(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "the guest agent cannot be read: %w; build it with CGO_ENABLED=0 go build ./cmd/warmboot-guest", err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "the guest agent %s is not a program: %w; build it with CGO_ENABLED=0 go build ./cmd/warmboot-guest", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, warmboot.Errorf(warmboot.Invalid, op, "the guest agent %s is linked dynamically and cannot run in an initrd; build it with CGO_ENABLED=0", path)
		}
	}
	if f.Machine != elf.EM_X86_64 {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "the guest agent %s is for %s; build it with GOARCH=amd64", path, f.Machine)
	}
	return b, nil
}

// needTools reports an Unavailable error that names the Debian package of a tool that the host does not have.
func needTools() error {
	tools := []struct{ tool, pkg string }{
		{"mmdebstrap", "mmdebstrap"}, {"mkfs.ext4", "e2fsprogs"}, {"resize2fs", "e2fsprogs"}, {"debugfs", "e2fsprogs"}, {"xz", "xz-utils"},
		{"unshare", "util-linux"}, {"dpkg-deb", "dpkg"}, {"apt-get", "apt"}, {"newuidmap", "uidmap"},
	}
	if os.Geteuid() == 0 {
		tools = tools[:len(tools)-1] // only others need a helper to be several users
	}
	for _, t := range tools {
		if _, err := lookTool(t.tool); err != nil {
			return warmboot.Errorf(warmboot.Unavailable, op, "%s is not installed; run: apt-get install %s", t.tool, t.pkg)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "Debian's archive keys are not installed; run: apt-get install debian-archive-keyring")
	}
	return nil
}

// lookTool finds a program in PATH, or in the directories for administrators, which users do not have in theirs.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

// asError gives every error that leaves the package its code.
func asError(err error) error {
	var e *warmboot.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, context.Canceled):
		return warmboot.Errorf(warmboot.Canceled, op, "the build was stopped: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return warmboot.Errorf(warmboot.Timeout, op, "the build took longer than it may: %w", err)
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
