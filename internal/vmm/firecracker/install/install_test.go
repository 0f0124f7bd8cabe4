package install

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

// member is an entry of an archive.
type member struct {
	tar.Header
	content []byte
}

func regular(name string, content []byte) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}, content}
}

// pack makes an archive.
func pack(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	w := tar.NewWriter(z)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// noise does not get smaller when it is packed.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// The content of the programs of the release that the tests install.
var (
	testFirecracker = noise(700_000)
	testJailer      = []byte("the jailer")
)

// release is an archive as its makers would have made it.
func release(t *testing.T) []byte {
	return pack(t,
		member{Header: tar.Header{Typeflag: tar.TypeDir, Name: "release-" + Version + "-x86_64/", Mode: 0o755}},
		regular("release-"+Version+"-x86_64/LICENSE", []byte("free")),
		regular(programs[1].member, testJailer),
		regular(programs[0].member+".debug", noise(10)),
		regular(programs[0].member, testFirecracker),
		regular("release-"+Version+"-x86_64/NOTICE", nil),
	)
}

// site is a server with one file.
type site struct {
	*httptest.Server
	content []byte
	asked   atomic.Int64
	ranges  sync.Map // of Range headers that were asked for
	serve   func(s *site, w http.ResponseWriter, r *http.Request)
}

func startSite(t *testing.T, content []byte, serve func(*site, http.ResponseWriter, *http.Request)) *site {
	t.Helper()
	s := &site{content: content, serve: serve}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.ranges.Store(r.Header.Get("Range"), true)
		s.serve(s, w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// honest serves as any good server does, parts too.
func honest(s *site, w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "a.tgz", time.Time{}, bytes.NewReader(s.content))
}

func (s *site) config(t *testing.T) Config {
	t.Helper()
	sum := sha256.Sum256(s.content)
	return Config{Dir: filepath.Join(t.TempDir(), "lib", "firecracker"), URL: s.URL, SHA256: hex.EncodeToString(sum[:]), Client: s.Client(), Retry: time.Millisecond}
}

// installed checks that what is in dir is the release, whole, and nothing else is.
func installed(t *testing.T, dir string) {
	t.Helper()
	for name, want := range map[string][]byte{"firecracker": testFirecracker, "jailer": testJailer} {
		path := filepath.Join(dir, Version, name)
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes, %v", path, len(got), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	for _, d := range []string{dir, filepath.Join(dir, Version)} {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", d, info, err)
		}
	}
	only(t, dir, ".lock", Version)
	only(t, filepath.Join(dir, Version), "SHA256SUMS", "firecracker", "jailer")
}

func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("in %s there is %q, want %q", dir, got, want)
	}
}

func TestInstall(t *testing.T) {
	t.Parallel()
	s := startSite(t, release(t), honest)
	c := s.config(t)
	var last, total int64
	c.Progress = func(done, of int64) { last, total = done, of }
	binary, already, err := Install(t.Context(), c)
	if err != nil || already || binary != filepath.Join(c.Dir, Version, "firecracker") {
		t.Fatalf("%q, %v, %v", binary, already, err)
	}
	installed(t, c.Dir)
	if n := int64(len(s.content)); last != n || total != n {
		t.Errorf("the last progress is %d of %d, want %d", last, total, n)
	}
	if again, already, err := Install(t.Context(), c); err != nil || !already || again != binary || s.asked.Load() != 1 {
		t.Errorf("the second time: %q, %v, %v, and %d downloads", again, already, err, s.asked.Load())
	}
	// What is no more as it was is made anew.
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(binary, []byte("something else"), 0o755) },
		func() error { return os.Remove(filepath.Join(c.Dir, Version, "jailer")) },
		func() error { return os.Remove(filepath.Join(c.Dir, Version, sumsFile)) },
		func() error { return os.Mkdir(filepath.Join(c.Dir, ".draft"), 0o700) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Install(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(c.Dir, ".draft"))
		installed(t, c.Dir)
	}
}

// cutAt serves up to a place and breaks the connection off there.
func cutAt(at int) func(*site, http.ResponseWriter, *http.Request) {
	return func(s *site, w http.ResponseWriter, r *http.Request) {
		if s.asked.Load() > 1 {
			honest(s, w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(s.content)))
		_, _ = w.Write(s.content[:at])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestADownloadThatBreaksOffGoesOn(t *testing.T) {
	t.Parallel()
	content := release(t)
	half := len(content) / 2
	t.Run("by itself", func(t *testing.T) {
		t.Parallel()
		s := startSite(t, content, cutAt(half))
		c := s.config(t)
		if _, _, err := Install(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		installed(t, c.Dir)
		if _, ok := s.ranges.Load(fmt.Sprintf("bytes=%d-", half)); !ok || s.asked.Load() != 2 {
			t.Errorf("%d bytes were there, and it asked %d times, not for the rest", half, s.asked.Load())
		}
	})
	t.Run("by the next installation", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		s := startSite(t, content, honest)
		c := s.config(t)
		c.Progress = func(done, _ int64) {
			if done > int64(half) {
				cancel()
			}
		}
		_, _, err := Install(ctx, c)
		expect.Code(t, err, warmboot.Canceled, "goes on where it ended")
		part := filepath.Join(c.Dir, ".firecracker-"+Version+".tgz.part")
		info, err := os.Stat(part)
		if err != nil || info.Size() <= int64(half) || info.Size() >= int64(len(content)) {
			t.Fatalf("what has come: %v, %v", info, err)
		}
		c.Progress = nil
		if _, _, err := Install(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		installed(t, c.Dir)
		if _, ok := s.ranges.Load(fmt.Sprintf("bytes=%d-", info.Size())); !ok {
			t.Error("it did not ask for the rest")
		}
	})
}

// What was there from before is no longer what the server has, or never was.
func TestAPartThatIsWrongIsFetchedAnew(t *testing.T) {
	t.Parallel()
	content := release(t)
	for name, c := range map[string]struct {
		part  []byte
		serve func(*site, http.ResponseWriter, *http.Request)
	}{
		"of another archive": {noise(1000), honest},
		"too long":           {append(bytes.Clone(content), "and more"...), honest},
		"as long, and wrong": {noise(len(content)), honest},
		"whole":              {content, honest},
		"a server without ranges": {content[:1000], func(s *site, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(s.content)
		}},
		"a server that says no length": {nil, func(s *site, w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(s.content)
		}},
		"a server with other ranges": {content[:1000], func(s *site, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				honest(s, w, r)
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%[1]d", len(s.content)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(s.content[7:])
		}},
		"a server that is busy at first": {nil, func(s *site, w http.ResponseWriter, r *http.Request) {
			if s.asked.Load() < tries {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			honest(s, w, r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, content, c.serve)
			config := s.config(t)
			if err := os.MkdirAll(config.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(config.Dir, ".firecracker-"+Version+".tgz.part"), c.part, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Install(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			installed(t, config.Dir)
		})
	}
}

func TestNoDownload(t *testing.T) {
	t.Parallel()
	content := release(t)
	status := func(code int) func(*site, http.ResponseWriter, *http.Request) {
		return func(_ *site, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, c := range map[string]struct {
		serve func(*site, http.ResponseWriter, *http.Request)
		sum   string
		code  warmboot.Code
		says  string
		left  []string
	}{
		"not found":        {serve: status(404), code: warmboot.Unavailable, says: "404 Not Found", left: []string{".firecracker-" + Version + ".tgz.part", ".lock"}},
		"always busy":      {serve: status(503), code: warmboot.Unavailable, says: "503", left: []string{".firecracker-" + Version + ".tgz.part", ".lock"}},
		"a wrong checksum": {serve: honest, sum: strings.Repeat("0", 64), code: warmboot.Corrupt, says: "is not the release that warmboot knows", left: []string{".lock"}},
		"too large, and it says so": {serve: func(_ *site, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(archiveLimit+1))
			w.(http.Flusher).Flush()
		}, code: warmboot.Corrupt, says: "larger than a release", left: []string{".firecracker-" + Version + ".tgz.part", ".lock"}},
		"without an end": {serve: func(s *site, w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(s.content); err != nil {
					return
				}
			}
		}, code: warmboot.Corrupt, says: "larger than a release", left: []string{".firecracker-" + Version + ".tgz.part", ".lock"}},
		"nothing comes": {serve: func(_ *site, w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, code: warmboot.Unavailable, says: "nothing came for 50ms", left: []string{".firecracker-" + Version + ".tgz.part", ".lock"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, content, c.serve)
			config := s.config(t)
			if name == "nothing comes" {
				config.Stall = 50 * time.Millisecond
			}
			if c.sum != "" {
				config.SHA256 = c.sum
			}
			_, _, err := Install(t.Context(), config)
			expect.Code(t, err, c.code, c.says, "FIRECRACKER=", archiveURL, archiveSHA256)
			only(t, config.Dir, c.left...)
			if info, err := os.Stat(filepath.Join(config.Dir, c.left[0])); err != nil || info.Size() > 0 {
				t.Errorf("what is left has %d bytes (%v)", info.Size(), err)
			}
		})
	}
	t.Run("no server", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		_, _, err = Install(t.Context(), Config{Dir: t.TempDir(), URL: "http://" + l.Addr().String(), Retry: time.Millisecond})
		expect.Code(t, err, warmboot.Unavailable, "connection refused", "FIRECRACKER=")
	})
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	fc, jailer := regular(programs[0].member, testFirecracker), regular(programs[1].member, testJailer)
	link := func(kind byte) member {
		return member{Header: tar.Header{Typeflag: kind, Name: programs[0].member, Linkname: "/etc/passwd"}}
	}
	large := regular(programs[0].member, make([]byte, memberLimit+1))
	bomb := regular("zeros", make([]byte, totalLimit/4))
	good := pack(t, fc, jailer)
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"no archive":                     {[]byte("<html>sign in</html>"), "gzip"},
		"nothing":                        {nil, "EOF"},
		"no tar":                         {gzipped(t, noise(2000)), "tar"},
		"no jailer":                      {pack(t, fc), "it has no " + programs[1].member},
		"a symbolic link":                {pack(t, link(tar.TypeSymlink), jailer), "no regular file"},
		"a hard link":                    {pack(t, link(tar.TypeLink), jailer), "no regular file"},
		"a device":                       {pack(t, link(tar.TypeChar), jailer), "no regular file"},
		"an empty program":               {pack(t, regular(programs[0].member, nil), jailer), "has 0 bytes"},
		"a large program":                {pack(t, large, jailer), "has 67108865 bytes"},
		"names that lead out":            {pack(t, regular("../../"+programs[0].member, testFirecracker), regular("/"+programs[1].member, testJailer)), "it has no"},
		"cut off":                        {good[:len(good)/2], "unexpected EOF"},
		"more than a disk could hold":    {pack(t, bomb, bomb, bomb, bomb, fc, jailer), "unpacks to more"},
		"a program that ends too early":  {gzipped(t, tarOf(t, fc)[:5000]), "unexpected EOF"},
		"a name that is not quite right": {pack(t, regular("./"+programs[0].member, testFirecracker), jailer), "it has no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, c.content, honest)
			config := s.config(t)
			outside := filepath.Join(filepath.Dir(config.Dir))
			_, _, err := Install(t.Context(), config)
			expect.Code(t, err, warmboot.Corrupt, c.says)
			if _, err := os.Stat(filepath.Join(config.Dir, Version)); err == nil {
				t.Error("something is installed")
			}
			only(t, outside, "firecracker")
			if _, err := os.Stat(filepath.Join(config.Dir, ".draft")); err == nil {
				t.Error("a draft is left")
			}
		})
	}
	t.Run("a program twice", func(t *testing.T) {
		t.Parallel()
		s := startSite(t, pack(t, fc, regular(programs[0].member, []byte("another one")), jailer), honest)
		c := s.config(t)
		if _, _, err := Install(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		installed(t, c.Dir) // with the first one
	})
}

func gzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarOf(t *testing.T, m member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&m.Header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(m.content); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test mounts small file systems in memory, for which it must be root")
	}
	content := release(t)
	for name, size := range map[string]int{"while it is downloaded": len(content) / 2, "while it is unpacked": len(content) + len(content)/2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			small := t.TempDir()
			if err := syscall.Mount("tmpfs", small, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			s := startSite(t, content, honest)
			c := s.config(t)
			c.Dir = small
			_, _, err := Install(t.Context(), c)
			expect.Code(t, err, warmboot.Exhausted, "the disk is full")
			only(t, small, ".firecracker-"+Version+".tgz.part", ".lock")
		})
	}
}

func TestInstallationsWaitForOneAnother(t *testing.T) {
	t.Parallel()
	s := startSite(t, release(t), honest)
	c := s.config(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, _, err := Install(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	installed(t, c.Dir)
	if n := s.asked.Load(); n != 1 {
		t.Errorf("it was downloaded %d times", n)
	}
	unlock, err := lock(t.Context(), filepath.Join(c.Dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = Install(ctx, c)
	expect.Code(t, err, warmboot.Timeout, "another installation")
}

// A release that an earlier warmboot has installed is better than none.
func TestBinaries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"v1.9.0", "v1.14.4", "v1.17.0", ".draft", "notes"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]string{dir: Version + " v1.17.0 v1.14.4 v1.9.0", "/no/such/directory": Version} {
		var got []string
		for _, path := range Binaries(dir) {
			version, name := filepath.Split(path)
			if got = append(got, filepath.Base(version)); name != "firecracker" || filepath.Dir(filepath.Clean(version)) != dir {
				t.Errorf("%s is no place below %s", path, dir)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("below %s it looks in %q, want %q", dir, got, want)
		}
	}
}

func TestWhereItMayNotBe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Install(t.Context(), Config{Dir: filepath.Join(file, "below")})
	expect.Code(t, err, warmboot.Internal, "not a directory")
	expect.Code(t, failure(&fs.PathError{Op: "mkdir", Path: Dir, Err: syscall.EACCES}), warmboot.Denied, "run it as root", Dir)
}

// downloadVar makes the test that follows ask the makers themselves.
const downloadVar = "WARMBOOT_TEST_DOWNLOAD"

// A digit that is wrong in archiveSHA256 would keep everybody from installing anything, and no test without a network can tell.
func TestThePublishedDigest(t *testing.T) {
	if os.Getenv(downloadVar) != "1" {
		t.Skipf("SKIPPED: whether the pinned checksum is the published one: it downloads the real release; where %s can be reached, set %s=1", archiveURL, downloadVar)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, archiveURL+".sha256.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err := errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", req.URL, res.Status, err)
	}
	// sha256sum's format, with the archive's name.
	if published := strings.Fields(string(text)); len(published) != 2 || published[0] != archiveSHA256 || strings.TrimPrefix(published[1], "*") != filepath.Base(archiveURL) {
		t.Fatalf("published is %q, and archiveSHA256 is %s", text, archiveSHA256)
	}
	binary, _, err := Install(ctx, Config{Dir: filepath.Join(t.TempDir(), "firecracker"), Client: client})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"firecracker": "Firecracker " + Version, "jailer": "Jailer " + Version} {
		if out, err := exec.CommandContext(ctx, filepath.Join(filepath.Dir(binary), name), "--version").Output(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s --version: %q, %v", name, out, err)
		}
	}
}
