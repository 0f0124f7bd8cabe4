package hostnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"warmboot"
)

// The queue of a limited interface: what may go out at once, in bytes, at least one packet that has not been cut to size yet; and how
// long, in milliseconds, what must wait may take.
const (
	minBurst   = 64 << 10
	burstMsec  = 10
	queuedMsec = 50
)

// setBandwidth limits what a slot's guest receives, at the TAP, and what it sends, at the veth pair, by a token bucket each (tc-tbf(8)).
func setBandwidth(ns *os.File, b warmboot.Bandwidth) error {
	h, err := netlink.NewHandleAt(vishns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, l := range []struct {
		name string
		mbit int
	}{{tapName, b.IngressMbit}, {upName, b.EgressMbit}} {
		link, err := h.LinkByName(l.name)
		if err != nil {
			return err
		}
		root := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}
		if l.mbit == 0 {
			err := h.QdiscDel(&netlink.Tbf{QdiscAttrs: root})
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // there is none
				return fmt.Errorf("lift bandwidth limit of %s: %w", l.name, err)
			}
			continue
		}
		rate := uint64(l.mbit) * 1_000_000 / 8
		burst := max(minBurst, uint32(rate*burstMsec/1000))
		if err := h.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: root, Rate: rate, Limit: burst + uint32(rate*queuedMsec/1000), Buffer: netlink.Xmittime(rate, burst),
		}); err != nil {
			return fmt.Errorf("limit bandwidth of %s: %w", l.name, err)
		}
	}
	return nil
}
