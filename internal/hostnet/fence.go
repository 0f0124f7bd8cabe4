package hostnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"warmboot"
	"warmboot/internal/rollback"
)

// forwardFile says whether the host passes on what is not for itself.
const forwardFile = "/proc/sys/net/ipv4/ip_forward"

func forwarding() (bool, error) { return forwards(forwardFile) }

func forwards(file string) (bool, error) {
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)) == "1", err
}

// fence makes a host that forwards no packets forward those of microVMs, and no others. Forwarding is turned on as a whole, so that an uplink that
// comes later has it, and whoever needs it too, such as Docker, finds it on. Rules keep the interfaces that there were from sending to one another by
// way of this host, as before. Interfaces that come later are not behind the fence: somebody makes them who finds forwarding on. All
// warmboots of a host have one fence together. The kernel forgets it when the host boots again, as it does forwarding.
type fence struct {
	log *slog.Logger
	// The interfaces that there were when forwarding was turned on, and those of them that did not forward already. Both are nil if others
	// have turned it on: then there is no fence.
	before, closed []string
	failed         bool // to be put right, when it was tried last
}

// The fence's nftables table, and the sets in it.
const (
	fenceTable = "warmboot-fence"
	beforeSet  = "before"
	closedSet  = "closed"
)

// slotLink is what the host's ends of slots are called, whichever warmboot's they are.
var slotLink = regexp.MustCompile(`^wb[0-9a-f]{6}-[0-9]+$`)

// raise sees to it that the host forwards, behind a fence if others have not turned that on.
func (f *fence) raise() error {
	on, err := forwarding()
	if err != nil {
		return cannotForward(err)
	}
	if on { // perhaps another warmboot's doing, or that of an earlier process of ours
		return f.learn()
	}
	var undo rollback.Stack
	defer undo.Unwind()
	if f.before == nil {
		if err := f.survey(); err != nil {
			return err
		}
		undo.Push("survey interfaces", func() error { f.before, f.closed = nil, nil; return nil })
	}
	if err := f.build(); err != nil {
		return &warmboot.Error{Code: warmboot.Unavailable, Op: opForward, Err: obstacle(err)}
	}
	undo.Push("build fence", f.tearDown)
	if err := os.WriteFile(forwardFile, []byte("1"), 0); err != nil {
		return cannotForward(err)
	}
	undo.Move()
	f.log.Info("IP forwarding is turned on for microVMs (net.ipv4.ip_forward); a fence keeps this machine from passing on anything else between its networks, as before",
		"table", fenceTable, "interfaces", f.before)
	return nil
}

// keep puts right what others have changed since. It says so once.
func (f *fence) keep() {
	say := f.log.Warn
	if f.failed {
		say = func(string, ...any) {}
	}
	on, err := forwarding()
	switch {
	case err == nil && !on:
		say("Somebody has turned off IP forwarding (net.ipv4.ip_forward), without which containers reach nothing beyond this machine")
		err = f.raise()
	case err == nil && f.before != nil:
		var table *nftables.Table
		if table, err = findTable(fenceTable); err == nil && table == nil {
			say("Somebody has removed the fence that keeps this machine from passing on packets between its networks; it is put back", "table", fenceTable)
			err = f.build()
		}
	}
	if err != nil {
		say("IP forwarding is not as containers, and this machine's networks, need it; it is tried again", "err", err)
	}
	f.failed = err != nil
}

const opForward = "turn on IP forwarding"

func cannotForward(err error) error {
	o := &Obstacle{"this machine does not forward IP packets, and that cannot be turned on", "`sysctl -w net.ipv4.ip_forward=1`, where that is allowed", err}
	return &warmboot.Error{Code: warmboot.Unavailable, Op: opForward, Err: o}
}

// survey looks which interfaces there are and which of them forward by themselves.
func (f *fence) survey() error {
	names, err := interfaces()
	if err != nil {
		return err
	}
	f.before, f.closed = []string{}, []string{}
	for _, name := range names {
		if slotLink.MatchString(name) {
			continue
		}
		f.before = append(f.before, name)
		if on, err := forwards("/proc/sys/net/ipv4/conf/" + name + "/forwarding"); err == nil && !on {
			f.closed = append(f.closed, name)
		}
	}
	return nil
}

// interfaces are the names of those that the host has, without its loopback.
func interfaces() ([]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" {
			names = append(names, name)
		}
	}
	return names, nil
}

// learn makes the fence what the kernel has, if it has one.
func (f *fence) learn() error {
	table, err := findTable(fenceTable)
	if table == nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	read := func(name string) []string {
		var elements []nftables.SetElement
		set, e := conn.GetSetByName(table, name)
		if e == nil {
			elements, e = conn.GetSetElements(set)
		}
		err = cmp.Or(err, e)
		names := []string{}
		for _, name := range elements {
			names = append(names, string(bytes.TrimRight(name.Key, "\x00")))
		}
		return names
	}
	before, closed := read(beforeSet), read(closedSet)
	if err != nil {
		o := &Obstacle{"the nftables table " + fenceTable + " is not one that warmboot has made", "`nft delete table inet " + fenceTable + "`, if nobody else needs it", err}
		return &warmboot.Error{Code: warmboot.Unavailable, Op: "read " + fenceTable, Err: o}
	}
	f.before, f.closed = before, closed
	return nil
}

func (f *fence) build() error {
	b, err := newBatch(nil, fenceTable)
	if err != nil {
		return err
	}
	b.renew()
	set := func(name string, id uint32, members []string) *nftables.Set {
		s := &nftables.Set{Table: b.table, Name: name, ID: id, KeyType: nftables.TypeIFName}
		var elements []nftables.SetElement
		for _, m := range members {
			elements = append(elements, nftables.SetElement{Key: padded(m)})
		}
		b.add(s, elements)
		return s
	}
	closed, before := set(closedSet, 1<<16, f.closed), set(beforeSet, 1<<16+1, f.before)
	c := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	b.rule(c, ipv4(), iifIn(closed), oifIn(before), drop())
	return b.commit()
}

func (f *fence) tearDown() error {
	b, err := newBatch(nil, fenceTable)
	if err != nil {
		return err
	}
	b.remove()
	return b.commit()
}

// lower puts everything back as it was, unless an interface has come since: whoever has made it may rely on forwarding, be it another warmboot.
// Where interfaces forwarded by themselves it stays as it is too, because turning it off as a whole would be their end.
func (f *fence) lower() error {
	if f.before == nil || len(f.closed) != len(f.before) {
		return nil
	}
	names, err := interfaces()
	if err != nil || slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(f.before, name) }) {
		return err
	}
	return errors.Join(os.WriteFile(forwardFile, []byte("0"), 0), f.tearDown())
}

// iifIn is `iifname { SET }`, and oifIn `oifname { SET }`.
func iifIn(s *nftables.Set) []expr.Any { return isIn(expr.MetaKeyIIFNAME, s) }
func oifIn(s *nftables.Set) []expr.Any { return isIn(expr.MetaKeyOIFNAME, s) }

func isIn(key expr.MetaKey, s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, in(s)}
}
