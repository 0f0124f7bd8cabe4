package guest

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// addEth0 adds an interface that behaves like a network card; a TAP is what every kernel that runs VMs has.
func addEth0(t *testing.T) {
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: nicName}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		t.Fatal(err)
	}
}

func testIdentity(last string) *guestv1.ReidentifyRequest {
	return &guestv1.ReidentifyRequest{
		Identity: &guestv1.Identity{
			Hostname: "clone-" + last, MachineId: strings.ReplaceAll(string(warmboot.NewID()), "-", ""),
			Mac: "02:00:00:00:00:0" + last, Address: "100.64." + last + ".15/24",
		},
		Gateway: "100.64." + last + ".2", Dns: "100.64." + last + ".3", Seed: []byte(strings.Repeat(last, minSeed)),
	}
}

// TestReidentify takes one identity after another, as a clone that was itself cloned does.
func TestReidentify(t *testing.T) {
	t.Parallel()
	inNamespaces(t, func() {
		g := newTestGuest(t)
		var err error
		if g.nic, err = openNIC(); err != nil { // in this namespace
			t.Fatal(err)
		}
		addEth0(t)
		for _, last := range []string{"1", "2", "2", "3"} {
			req := testIdentity(last)
			resp, err := g.reidentify(req)
			if err != nil {
				t.Fatal(err)
			}
			want := req.Identity
			if got := resp.Identity; got.Hostname != want.Hostname || got.MachineId != want.MachineId || got.Mac != want.Mac || got.Address != want.Address {
				t.Errorf("read back %v, want %v", got, want)
			}
			for path, want := range map[string]string{
				"/etc/hostname": "clone-" + last + "\n", "/etc/resolv.conf": "nameserver 100.64." + last + ".3\n",
				"/etc/machine-id": want.MachineId + "\n", "/etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tclone-" + last + "\n",
			} {
				if got, err := os.ReadFile(g.path(path)); string(got) != want || err != nil {
					t.Errorf("%s: %q %v, want %q", path, got, err, want)
				}
			}
			if gw, err := defaultGateway(); gw.String() != req.Gateway || err != nil {
				t.Errorf("default route via %v (%v), want %s", gw, err, req.Gateway)
			}
			// What the kernel has, asked in another way.
			link, err := netlink.LinkByName(nicName)
			if err != nil {
				t.Fatal(err)
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != want.Address || link.Attrs().HardwareAddr.String() != want.Mac {
				t.Errorf("addresses %v (%v) of %s, want %v", addrs, err, link.Attrs().HardwareAddr, want)
			}
		}
		steps, err := flushNetwork()
		if err != nil {
			t.Fatal(err)
		}
		if mac, address, err := g.nic.read(); address != "" || mac == "" || err != nil {
			t.Errorf("after the flush: %q %q %v (%v)", mac, address, err, steps)
		}
		if gw, err := defaultGateway(); gw.IsValid() || err != nil {
			t.Errorf("after the flush: a route via %v (%v)", gw, err)
		}
	})
}

func TestNoInterface(t *testing.T) {
	t.Parallel()
	inNamespaces(t, func() {
		nic, err := openNIC()
		if err != nil {
			t.Fatal(err)
		}
		defer nic.close()
		if mac, address, err := nic.read(); mac != "" || address != "" || err != nil {
			t.Errorf("%q %q %v", mac, address, err)
		}
		if _, err := flushNetwork(); err == nil {
			t.Error("flushed an interface that is not there")
		}
	})
}

// TestBadIdentities are refused before anything is changed.
func TestBadIdentities(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	for name, spoil := range map[string]func(*guestv1.ReidentifyRequest){
		"hostname with a line": func(r *guestv1.ReidentifyRequest) { r.Identity.Hostname = "a\n127.0.0.1 evil" },
		"long hostname":        func(r *guestv1.ReidentifyRequest) { r.Identity.Hostname = strings.Repeat("a", 65) },
		"machine-id":           func(r *guestv1.ReidentifyRequest) { r.Identity.MachineId = "xyz" },
		"upper machine-id":     func(r *guestv1.ReidentifyRequest) { r.Identity.MachineId = strings.Repeat("A", 32) },
		"multicast MAC":        func(r *guestv1.ReidentifyRequest) { r.Identity.Mac = "01:00:00:00:00:01" },
		"long MAC":             func(r *guestv1.ReidentifyRequest) { r.Identity.Mac = "02:00:00:00:00:01:02:03" },
		"address":              func(r *guestv1.ReidentifyRequest) { r.Identity.Address = "10.0.0.1" },
		"IPv6 address":         func(r *guestv1.ReidentifyRequest) { r.Identity.Address = "fe80::1/64" },
		"gateway":              func(r *guestv1.ReidentifyRequest) { r.Gateway = "nowhere" },
		"DNS with a line":      func(r *guestv1.ReidentifyRequest) { r.Dns = "1.1.1.1\nsearch evil" },
		"short seed":           func(r *guestv1.ReidentifyRequest) { r.Seed = []byte("short") },
	} {
		req := testIdentity("1")
		spoil(req)
		if _, err := c.Reidentify(t.Context(), req); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if exists(g.path("/etc/hostname")) {
		t.Error("a refused identity was taken on")
	}
}
