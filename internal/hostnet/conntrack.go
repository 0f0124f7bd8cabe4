package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// forget makes a slot's connection tracking forget its guest's connections, so that they are judged anew.
func forget(ns *os.File) error {
	h, err := netlink.NewHandleAt(vishns.NsHandle(ns.Fd()), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.ConntrackTableFlush(netlink.ConntrackTable); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget a slot's connections: %w", err)
	}
	return nil
}

// slotFlows finds the host's connections from or to slots by the slots' addresses: who begins is the source of the first packet, who
// answers that of the reply.
type slotFlows map[netip.Addr]bool

func (s slotFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(f.Forward.SrcIP.To4())
	answers, _ := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	return s[from] || s[answers]
}

// forgetAddresses makes the host forget connections from and to slots. Else the next that has an address could go on with what the last
// one had begun, or be sent what was meant for it.
func forgetAddresses(slots map[netip.Addr]bool) error {
	_, err := whole(func() ([]struct{}, error) {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, slotFlows(slots))
		return nil, err
	})
	if err != nil {
		return fmt.Errorf("forget connections of network slots: %w", err)
	}
	return nil
}
