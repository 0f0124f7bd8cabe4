package guest

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

const (
	machineIDPath = "/etc/machine-id"
	minSeed       = 32
)

// reidentify makes this machine another one than all that came out of the same snapshot, and reads back what it has become. It
// starts no process and waits for nothing: every restored machine's user waits for it. On an error the host throws
// the machine away, so nothing is undone.
//
// What it cannot reach is the state of random generators that programs seeded for themselves before the snapshot, such as Go's
// math/rand; Docker and containerd take every id from the kernel.
func (g *Guest) reidentify(req *guestv1.ReidentifyRequest) (*guestv1.ReidentifyResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := checkIdentity(req); err != nil {
		return nil, err
	}
	resp, err := g.assume(req)
	g.quiesced = g.quiesced && err != nil
	return resp, err
}

// assume takes on an identity that has been checked. The caller holds g.mu.
func (g *Guest) assume(req *guestv1.ReidentifyRequest) (*guestv1.ReidentifyResponse, error) {
	const op = "re-identify"
	address, gateway, err := parseNetwork(req)
	if err != nil {
		return nil, err
	}
	// First, because the host's time stands still in the request while ours goes on.
	if req.UnixNanos != 0 {
		now := unix.NsecToTimespec(req.UnixNanos)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			return nil, internal(op+": set the clock", err)
		}
	}
	if len(req.Seed) > 0 {
		if err := reseed(req.Seed); err != nil {
			return nil, internal(op+": seed the kernel's random generator", err)
		}
	}
	id := req.GetIdentity()
	renamed := false
	if id.GetHostname() != "" {
		if err := g.setHostname(id.Hostname); err != nil {
			return nil, err
		}
	}
	if id.GetMachineId() != "" {
		if renamed, err = g.setMachineID(id.MachineId); err != nil {
			return nil, internal(op, err)
		}
	}
	if err := g.nic.set(id.GetMac(), address, gateway); err != nil {
		return nil, internal(op+": set up the network", err)
	}
	if req.Gateway != "" {
		g.gateway = req.Gateway
	}
	if req.Dns != "" {
		if err := writeFile(g.path("/etc/resolv.conf"), "nameserver "+req.Dns+"\n"); err != nil {
			return nil, internal(op, err)
		}
	}
	engine, err := g.setEngineID(id.GetEngineId())
	if err != nil {
		return nil, err
	}
	got, err := g.readIdentity()
	if err != nil {
		return nil, internal(op+": read back", err)
	}
	got.EngineId = engine
	if renamed {
		g.staleJournal.Store(true)
	}
	return &guestv1.ReidentifyResponse{Identity: got, UnixNanos: time.Now().UnixNano()}, nil
}

func checkIdentity(req *guestv1.ReidentifyRequest) error {
	bad := func(format string, args ...any) error {
		return warmboot.Errorf(warmboot.Invalid, "re-identify", format, args...)
	}
	id := req.GetIdentity()
	if h := id.GetHostname(); len(h) > 64 || strings.ContainsAny(h, " \t\r\n/\x00") {
		return bad("%q is not a hostname", h)
	}
	if m := id.GetMachineId(); m != "" {
		if b, err := hex.DecodeString(m); err != nil || len(b) != 16 || strings.ToLower(m) != m {
			return bad("%q is not a machine-id: 32 lower-case hexadecimal digits", m)
		}
	}
	if m := id.GetMac(); m != "" {
		if hw, err := net.ParseMAC(m); err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return bad("%q is not a MAC address of one interface", m)
		}
	}
	if _, _, err := parseNetwork(req); err != nil {
		return err
	}
	if req.Dns != "" {
		if a, err := netip.ParseAddr(req.Dns); err != nil || !a.Is4() {
			return bad("%q is not an IPv4 address", req.Dns)
		}
	}
	if n := len(req.Seed); n > 0 && n < minSeed {
		return bad("a seed of %d bytes is too short; at least %d are needed", n, minSeed)
	}
	return nil
}

// parseNetwork reads the addresses of a request; those that are empty come back invalid.
func parseNetwork(req *guestv1.ReidentifyRequest) (address netip.Prefix, gateway netip.Addr, err error) {
	if a := req.GetIdentity().GetAddress(); a != "" {
		if address, err = netip.ParsePrefix(a); err != nil || !address.Addr().Is4() {
			return address, gateway, warmboot.Errorf(warmboot.Invalid, "re-identify", "%q is not an IPv4 address with prefix length", a)
		}
	}
	if req.Gateway != "" {
		if gateway, err = netip.ParseAddr(req.Gateway); err != nil || !gateway.Is4() {
			return address, gateway, warmboot.Errorf(warmboot.Invalid, "re-identify", "%q is not an IPv4 address", req.Gateway)
		}
	}
	return address, gateway, nil
}

// setHostname names the machine: in the kernel, and in the files that programs look at.
func (g *Guest) setHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return internal("set the hostname", err)
	}
	if err := writeFile(g.path("/etc/hostname"), name+"\n"); err != nil {
		return internal("set the hostname", err)
	}
	// localhost is IPv4 only, as the machine is: registries on it must not be looked for at ::1.
	hosts := "127.0.0.1\tlocalhost\n127.0.1.1\t" + name + "\n"
	return internal("set the hostname", writeFile(g.path("/etc/hosts"), hosts))
}

// setMachineID returns whether id is another one than before.
func (g *Guest) setMachineID(id string) (changed bool, err error) {
	path := g.path(machineIDPath)
	was, err := readFile(path)
	changed = err != nil || string(was) != id+"\n"
	if err := writeFile(path, id+"\n"); err != nil {
		return changed, err
	}
	// D-Bus's copy, where it is not a link to ours, would tell the old one.
	old := g.path("/var/lib/dbus/machine-id")
	if info, err := os.Lstat(old); err == nil && info.Mode().IsRegular() {
		return changed, os.Remove(old)
	}
	return changed, nil
}

// readIdentity reads everything but Docker's engine id from the kernel and from the files.
func (g *Guest) readIdentity() (*guestv1.Identity, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	id := &guestv1.Identity{Hostname: unix.ByteSliceToString(uts.Nodename[:])}
	text, err := readFile(g.path(machineIDPath))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	id.MachineId = strings.TrimSpace(string(text))
	id.Mac, id.Address, err = g.nic.read()
	return id, err
}
