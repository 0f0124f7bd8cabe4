package hostnet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/rollback"
)

// How long a packet may take from one slot to another, or to the host, and when another is sent. It takes a fraction of a millisecond, but a busy host
// may lose the first while it still looks for its neighbours; and one that is taken for a host without TAPs has no Firecracker.
const (
	arriveLimit = 3 * time.Second
	arriveAgain = 100 * time.Millisecond
)

// Obstacle is why there can be no slots with TAPs, and what to do about that.
type Obstacle struct {
	What string
	Fix  string
	Err  error // may be nil
}

func (o *Obstacle) Error() string {
	text := o.What
	if o.Err != nil {
		text += ": " + o.Err.Error()
	}
	return text + "; " + o.Fix
}

func (o *Obstacle) Unwrap() error { return o.Err }

// Try finds out whether slots with TAPs and addresses from cidr work here, by making two of them and sending a packet from one to the
// other and one to the host; then it removes them. It is an Unavailable error, mostly with an Obstacle in it, if they do not. That needs no forwarding
// but between the slots, and does not turn it on for others. It takes about a tenth of a second.
func Try(ctx context.Context, cidr netip.Prefix) (err error) {
	if err := allowed(); err != nil {
		return err
	}
	var numbers numbers
	k, err := openKeeper(Config{Owner: nobody(), CIDR: cidr, Log: slog.New(slog.DiscardHandler)}, &numbers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	return k.try(ctx)
}

// CanTAP is why a Net of this mode would not be one with TAPs, nil if it would. In mode TAP, Open either makes it so or says why not.
func CanTAP(ctx context.Context, mode Mode, cidr netip.Prefix) error {
	switch mode {
	case TAP:
		return nil
	case User:
		return warmboot.Errorf(warmboot.Unavailable, opTry, "%s", userAsked)
	}
	return Try(ctx, cidr)
}

const opTry = "try network slots"

// allowed sees to it that we may do what slots need.
func allowed() error {
	if os.Geteuid() != 0 {
		return &warmboot.Error{Code: warmboot.Unavailable, Op: opTry, Err: &Obstacle{What: "only root can make network namespaces and TAPs", Fix: "run `warmboot serve` as root"}}
	}
	return nil
}

// nobody is an owner that there is not.
func nobody() string {
	owner := make([]byte, 3)
	rand.Read(owner) // never fails: crypto/rand aborts the program instead
	return hex.EncodeToString(owner)
}

// try makes two slots with addresses of the keeper's, but of nobody's: no rules of the keeper's, which may be there from before, are about
// them.
func (k *keeper) try(ctx context.Context) error {
	trial := &keeper{Config: k.Config, home: k.home, block: k.block}
	trial.Owner = nobody()
	trial.rules = newRules(trial.Config)
	err := trial.tryOut(ctx)
	var o *Obstacle
	switch {
	case errors.As(err, &o):
		return &warmboot.Error{Code: warmboot.Unavailable, Op: opTry, Err: err}
	case err != nil && ctx.Err() != nil:
		return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), opTry, "%w", ctx.Err())
	}
	return err
}

func (k *keeper) tryOut(ctx context.Context) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	var slots []*tap
	undo.Push("make slots", func() error { return k.destroy(slots) })
	for n := range 2 {
		s, err := k.build(n)
		if err != nil {
			return obstacle(err)
		}
		slots = append(slots, s)
		// A slot lets nobody in it send; here it is we.
		b, err := newBatch(s.ns, insideTable)
		if err != nil {
			return err
		}
		b.remove()
		if err := b.commit(); err != nil {
			return err
		}
	}
	a, b := slots[0], slots[1]
	err = arrives(ctx, a, b.ns, b.slot)
	if ctx.Err() != nil { // then it says nothing of firewalls
		return ctx.Err()
	}
	if err != nil {
		return &Obstacle{"this machine's firewall does not forward what microVMs send",
			"let it forward from and to interfaces whose names begin with wb, as with `iptables -I DOCKER-USER -i wb+ -j ACCEPT; iptables -I DOCKER-USER -o wb+ -j ACCEPT` where Docker is", err}
	}
	err = arrives(ctx, a, k.home, a.host)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return &Obstacle{"this machine's firewall does not let microVMs ask it for names",
			"let it accept what comes in by interfaces whose names begin with wb; warmboot's own rules keep microVMs away from everything but names and registries", err}
	}
	undo.Push("write rules", k.rules.remove)
	if err := k.rules.install(); err != nil {
		return obstacle(err)
	}
	return nil
}

// obstacle tells what may be missing when a slot cannot be built.
func obstacle(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), "/dev/net/tun"), errors.Is(err, unix.ENODEV):
		return &Obstacle{"there are no TAP devices", "`modprobe tun`", err}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return &Obstacle{"the network may not be changed", "run `warmboot serve` with CAP_NET_ADMIN and CAP_SYS_ADMIN and a writable /proc/sys, not in a container without them", err}
	case strings.Contains(err.Error(), "nftables"):
		return &Obstacle{"the kernel lacks parts of nftables", "use a distribution's kernel; its modules nf_tables, nft_ct, nft_nat, nft_masq, nft_fib_inet, nft_reject_inet, nft_limit and nft_connlimit are needed", err}
	}
	return &Obstacle{"a network slot cannot be made", "look at what the kernel says with `dmesg`", err}
}

// arrives sends a datagram from a slot to an address in a namespace.
func arrives(ctx context.Context, from *tap, ns *os.File, to netip.Addr) error {
	var in *net.UDPConn
	if err := netns.In(ns, func() (err error) {
		in, err = net.ListenUDP("udp4", &net.UDPAddr{IP: to.AsSlice()})
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var out *net.UDPConn
	if err := netns.In(from.ns, func() (err error) {
		out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	deadline, ours := time.Now().Add(arriveLimit), true
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline, ours = d, false
	}
	for {
		if _, err := out.Write([]byte("warmboot")); err != nil {
			return err
		}
		until := time.Now().Add(arriveAgain)
		if until.After(deadline) {
			until = deadline
		}
		if err := in.SetReadDeadline(until); err != nil {
			return err
		}
		_, _, err := in.ReadFromUDPAddrPort(make([]byte, 16))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		over := !time.Now().Before(deadline)
		if over && !ours {
			<-ctx.Done() // it may be a moment behind
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if over {
			return fmt.Errorf("what is sent from %s to %s is lost", from.slot, to)
		}
	}
}

// removeLeftovers removes slots and rules that an earlier process of an owner has left, for one that has none any more.
func removeLeftovers(c Config) error {
	if os.Geteuid() != 0 {
		return nil
	}
	k := &keeper{Config: c, rules: newRules(c)}
	numbers, err := k.ourLinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range numbers {
		errs = append(errs, k.deleteLink(k.linkName(n)))
	}
	conn, err := nftables.New()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return errors.Join(errs...) // without nftables there is no table
	}
	for _, t := range tables {
		if t.Name == k.rules.name {
			errs = append(errs, k.rules.remove())
		}
	}
	return errors.Join(errs...)
}
