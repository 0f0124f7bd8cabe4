package guest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A guest whose network card is to come later looks for it each second. The kernel would start modprobe for each question, so it is asked once;
// and the card is found all the same.
func TestMissingInterfaceIsAskedForOnce(t *testing.T) {
	t.Parallel()
	inNamespaces(t, func() {
		// The guest's /sys is its own network's; here it is the host's unless mounted again.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY, ""); err != nil {
			t.Error(err)
			return
		}
		n, err := openNIC()
		if err != nil {
			t.Error(err)
			return
		}
		defer n.close()
		absent := func(when string) {
			t.Helper()
			if mac, address, err := n.read(); mac != "" || address != "" || err != nil {
				t.Errorf("%s: %q, %q, %v", when, mac, address, err)
			}
		}
		absent("the first time")
		socket := n.fd
		n.fd = -1 // no question can be asked
		absent("the second time")
		addEth0(t)
		if mac, _, err := n.read(); err == nil {
			t.Errorf("an interface was read, %s, without asking for it", mac)
		}
		n.fd = socket
		if mac, _, err := n.read(); mac == "" || err != nil {
			t.Errorf("the interface is there: %q, %v", mac, err)
		}
	})
}
