package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/access"
	"warmboot/internal/bench"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
	"warmboot/internal/preflight"
	"warmboot/internal/store"
)

var update = flag.Bool("update", false, "write the golden file of the help anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"warmboot": func() { os.Exit(cli.Run(context.Background(), config(), os.Args[1:])) },
	})
}

// TestScripts runs the command as a process of its own against a real server: the real API, control plane and database, above a
// host that keeps its machines in memory.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			s, err := serve(env.WorkDir)
			if err != nil {
				return err
			}
			env.Defer(s.close)
			env.Values["server"] = s
			env.Setenv("WARMBOOT_HOST", s.http.URL)
			env.Setenv("WARMBOOT_TOKEN", s.token)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"litter": func(ts *testscript.TestScript, _ bool, args []string) {
				of(ts).host.Litter(controlplane.Garbage{Kind: controlplane.GarbageTemporary, Path: args[0], Bytes: 3 << 20})
			},
			"snapshot": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(of(ts).snapshot()) },
			"ends": func(ts *testscript.TestScript, _ bool, args []string) {
				code, err := strconv.Atoi(args[1])
				ts.Check(err)
				ts.Check(of(ts).end(args[0], code))
			},
			"local": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.Mkdir(ts.MkAbs(args[0]), 0o711))
				ts.Check(of(ts).access.EnsureLocal(context.Background(), ts.MkAbs(args[0]), "box"))
			},
			"take":   take,
			"exits":  exits,
			"awaits": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(of(ts).await(args[0], args[1])) },
		},
	})
}

func of(ts *testscript.TestScript) *server { return ts.Value("server").(*server) }

// take makes the commands that follow use the token in a file, or the tester's.
func take(ts *testscript.TestScript, _ bool, args []string) {
	secret := of(ts).token
	if len(args) > 0 {
		secret = strings.TrimSpace(ts.ReadFile(args[0]))
	}
	ts.Setenv("WARMBOOT_TOKEN", secret)
}

// exits runs a program that must end with the given exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var status *exec.ExitError
	if errors.As(err, &status) {
		code = status.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%v exits with %d, want %s", args[1:], code, args[0])
	}
}

// config is the command's, with functions that tell what they were given.
func config() cli.Config {
	return cli.Config{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Version: "v1.2.3",
		Serve: func(_ context.Context, o cli.ServeOptions) error {
			if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
				return err
			}
			return nil
		},
		Manager: func(_ context.Context, o cli.ManagerOptions) error { return json.NewEncoder(os.Stdout).Encode(o) },
		Agent:   func(_ context.Context, o cli.AgentOptions) error { return json.NewEncoder(os.Stdout).Encode(o) },
		BuildImage: func(_ context.Context, o cli.BuildImageOptions, progress cli.Progress) (api.RegisterImage, bool, error) {
			if o.Suite == "broken" {
				return api.RegisterImage{}, false, warmboot.Errorf(warmboot.Unavailable, "build runtime image", "the mirror does not answer; try --mirror")
			}
			progress("installing packages", 0.1)
			progress("packing", 0.9)
			name := o.Name
			if name == "" {
				name = o.Suite
			}
			dir := hosttest.Root + name
			return api.RegisterImage{Name: name, KernelPath: dir + "/vmlinuz", RootfsPath: dir + "/rootfs.ext4"}, !o.NoCache, nil
		},
		Bench: func(_ context.Context, o cli.BenchOptions, progress cli.Progress) (bench.Result, error) {
			progress("warm", 0)
			r := bench.Result{Image: o.Image, Machine: bench.Machine{CPU: o.StorageRoot, Cores: o.Runs}}
			for i := range o.Runs {
				r.Warm = append(r.Warm, bench.Sample{Ready: float64(i + 1), Running: float64(i + 2)})
			}
			return r, nil
		},
		Doctor: func(_ context.Context, o cli.DoctorOptions) []preflight.Check {
			checks := []preflight.Check{
				{Name: "KVM", Status: preflight.OK, Detail: "a kernel boots under Firecracker with it"},
				{Name: "Firecracker", Status: preflight.Warn, Detail: "v1.16.1, " + o.VMM.Firecracker + "; <it has a fault> & more", Fix: "`warmboot doctor --fix` as root"},
			}
			if os.Getenv("SICK") != "" {
				checks = append(checks, preflight.Check{Name: "microVMs run under", Status: preflight.Fail, Detail: "no VMM can be used below " + o.StorageRoot, Fix: "apt-get install qemu-system-x86"})
			}
			return checks
		},
		Fix: func(_ context.Context, _ cli.DoctorOptions, progress cli.Progress) []preflight.Fixed {
			progress("Downloading Firecracker v1.15.1", -1)
			for part := range 5 {
				progress("Downloading Firecracker v1.15.1", float64(part)/4)
			}
			if os.Getenv("OFFLINE") != "" {
				return []preflight.Fixed{{Name: "TAP devices", Detail: "/dev/net/tun is there"}, {Name: "Firecracker", Err: warmboot.Errorf(warmboot.Unavailable, "install Firecracker", "there is no network")}}
			}
			return []preflight.Fixed{{Name: "Firecracker", Detail: "v1.15.1 was installed"}}
		},
	}
}

// server is everything but real machines.
type server struct {
	host   *hosttest.Host
	plane  *planetest.Plane
	db     *store.Store
	svc    *controlplane.Service
	access *access.Keeper
	token  string // an admin's
	http   *httptest.Server
}

// serve starts a server with one runtime image, "base".
func serve(dir string) (*server, error) {
	log := slog.New(slog.DiscardHandler)
	s := &server{host: hosttest.New()}
	s.host.OnStart, s.host.Warning = s.onStart, "this VMM is none"
	var err error
	if s.plane, err = planetest.Start(context.Background(), planetest.Config{URL: filepath.Join(dir, ".warmboot.db"), Hosts: []*hosttest.Host{s.host}}); err != nil {
		return nil, err
	}
	s.db, s.svc = s.plane.Store, s.plane.Service
	if err == nil {
		_, err = s.svc.RegisterImage(context.Background(), warmboot.Image{Name: "base", KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"})
	}
	s.access = access.New(access.Config{Store: s.db, Log: log})
	if err == nil {
		_, s.token, err = s.access.CreateToken(context.Background(), access.Anonymous, "tester", warmboot.RoleAdmin, 0)
	}
	s.http = httptest.NewServer(httpapi.New(httpapi.Config{Service: s.svc, Access: s.access, Log: log, Version: "v9"}))
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *server) close() {
	_ = s.plane.Close() // first: it ends what requests wait for
	s.http.CloseClientConnections()
	s.http.Close()
	s.access.Close()
	s.host.Close()
}

// onStart gives images a meaning: "say" prints its arguments and ends, "exit" ends with the code it is given, "spec" prints what it was asked
// for, "missing" cannot be pulled, "slow" is never pulled, and every other one goes on running.
func (s *server) onStart(ctx context.Context, c warmboot.Container) error {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	say := func(stream, text string) {
		s.host.Print(c.ID, controlplane.LogLine{Stream: stream, Time: at, Text: text + "\n"})
	}
	switch c.Image {
	case "say":
		say("stdout", strings.Join(c.Spec.Args, " "))
		say("stderr", "done saying")
		s.host.Exit(c.ID, 0)
	case "exit":
		code, err := strconv.Atoi(c.Spec.Args[0])
		if err != nil {
			return err
		}
		s.host.Exit(c.ID, code)
	case "spec":
		text, err := json.Marshal(c.Spec)
		if err != nil {
			return err
		}
		say("stdout", string(text))
		s.host.Exit(c.ID, 0)
	case "missing":
		return warmboot.Errorf(warmboot.ImagePull, "pull", "the registry has no image %q; look at its name", c.Image)
	case "slow":
		<-ctx.Done()
		return ctx.Err()
	default:
		say("stdout", "up")
	}
	return nil
}

// snapshot builds a snapshot of the image "base" and waits for it.
func (s *server) snapshot() error {
	img, err := s.svc.Image(context.Background(), "base")
	if err != nil {
		return err
	}
	id, err := s.svc.BuildSnapshot(context.Background(), img.ID)
	if err != nil {
		return err
	}
	return eventually(func() (bool, error) {
		snap, err := s.db.Snapshot(context.Background(), id)
		return err == nil && snap.State == warmboot.SnapshotReady, err
	})
}

// end ends a container's command by itself.
func (s *server) end(name string, code int) error {
	c, err := s.svc.Container(context.Background(), name)
	if err != nil {
		return err
	}
	s.host.Exit(c.ID, code)
	return s.await(name, "stopped")
}

// await waits for a container's state.
func (s *server) await(name, state string) error {
	return eventually(func() (bool, error) {
		c, err := s.svc.Container(context.Background(), name)
		if warmboot.CodeOf(err) == warmboot.NotFound {
			return state == "gone", nil
		}
		return err == nil && string(c.State) == state, err
	})
}

func eventually(holds func() (bool, error)) error {
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		ok, err := holds()
		if ok || err != nil {
			tick.Stop()
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("it did not come true within 20 s")
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := cli.Config{In: strings.NewReader(""), Out: &out, Err: io.Discard, Env: func(string) string { return "" }, Version: "v1.2.3"}
	for _, path := range paths(cli.New(c), nil) {
		fmt.Fprintf(&out, "$ warmboot %s\n", strings.Join(append(path, "--help"), " "))
		if code := cli.Run(t.Context(), c, append(path, "--help")); code != 0 {
			t.Errorf("%v --help exits with %d", path, code)
		}
		out.WriteByte('\n')
	}
	const golden = "testdata/help.txt"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("the help differs from %s; if that is meant, run `go test ./internal/cli -run Help -update` (-want +got):\n%s", golden, diff)
	}
}

// paths are the command lines of a command and all below it.
func paths(cmd *cobra.Command, path []string) [][]string {
	all := [][]string{path}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			all = append(all, paths(sub, append(path[:len(path):len(path)], sub.Name()))...)
		}
	}
	return all
}
