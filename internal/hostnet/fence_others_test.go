package hostnet

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// othersHold makes the fence's table another program's, which nobody but that program may change until the returned function has given it up.
// nftables has such tables for firewalls' daemons (NFT_TABLE_F_OWNER, nft(8) "flags owner").
func othersHold(t *testing.T) (give func()) {
	t.Helper()
	const owned = 0x2 // NFT_TABLE_F_OWNER in linux/netfilter/nf_tables.h
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	flags := make([]byte, 4)
	binary.BigEndian.PutUint32(flags, owned)
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(fenceTable + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: flags},
	})
	if err != nil {
		t.Fatal(err)
	}
	// nfgenmsg: family, version, resource id.
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data ...byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	sent, err := c.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl|netlink.Acknowledge, append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attributes...)...),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
	})
	if err != nil || len(sent) != 3 {
		t.Fatal(err)
	}
	if _, err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fenceRefused is a host whose kernel does not take the fence.
func fenceRefused(t *testing.T) {
	setForwarding(t, forwardFile, "0")
	give := othersHold(t)
	c := config(t)
	wantNoSlots(t, c, fenceTable)
	wantForwarding(t, "without a fence", false, true)

	give()
	wantForwarding(t, "when the table is nobody's", false, false)
	n := open(t, c)
	wantForwarding(t, "with a fence", true, true)

	// Once there are microVMs, they lose their way out rather than the host become a router.
	if err := (&fence{}).tearDown(); err != nil {
		t.Fatal(err)
	}
	setForwarding(t, forwardFile, "0")
	give = othersHold(t)
	n.keeper.look()
	wantForwarding(t, "without the fence that there was", false, true)
	if !n.keeper.fence.failed {
		t.Error("what failed is not tried again")
	}
	give()
	n.keeper.look()
	wantForwarding(t, "when the fence can be put back", true, true)
}

// fenceKept is a host whose kernel does not let the fence be removed in the end.
func fenceKept(t *testing.T) {
	setForwarding(t, forwardFile, "0")
	c := config(t)
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := (&fence{}).tearDown(); err != nil {
		t.Fatal(err)
	}
	othersHold(t)
	if err := n.Close(); err == nil || !strings.Contains(err.Error(), fenceTable) {
		t.Errorf("of a fence that stays it is said: %v", err)
	}
	wantForwarding(t, "in the end", false, true)
	nothingLeft(t, c)
}

// fenceUnread is a host that forwards already, with a table of the fence's name that is none.
func fenceUnread(t *testing.T) {
	setForwarding(t, forwardFile, "1")
	othersHold(t)
	wantNoSlots(t, config(t), "is not one that warmboot has made")
	wantForwarding(t, "in the end", true, true)
}
