package hostnet

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"warmboot"
)

// guard is what keeps guests in user mode off the host: there it is the VMM's own process that connects to wherever the guest wants to go,
// and the network's gateway stands for the host. Without more, a container could reach every service on the host's loopback, a
// database without a password or warmboot's own API among them. A guard is an nftables table with rules on the user ids that VMMs
// run as.
type guard struct {
	owner       string
	first, last uint32 // the users
	// ports are the TCP ports on this host that guests may still reach: local registries. DNS (53, UDP and TCP) always is: a
	// guest's name server is the host's, which may well be a local one.
	ports []uint16

	stop     context.CancelFunc
	watching sync.WaitGroup
}

// table is the owner's own: if two have the same users, each has its guard for as long as it has guests.
func (g *guard) table() string { return fmt.Sprintf("warmboot-%d-%s", g.first, g.owner) }

// install puts the rules in place; they replace those that an earlier process of the owner left. Without the right to do so,
// or without nftables in the kernel, it is an Unavailable error.
func (g *guard) install() error {
	const op = "guard host network"
	if os.Geteuid() != 0 {
		return warmboot.Errorf(warmboot.Unavailable, op, "only root can set network rules")
	}
	b, err := newBatch(nil, g.table())
	if err != nil {
		return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Err: err}
	}
	b.renew()
	c := b.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	theirs := byUsers(g.first, g.last)
	for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		// Only new connections count: an answer on a published port goes to a local address too.
		b.rule(c, proto(p), theirs, state(expr.CtStateBitNEW), dns(), accept())
		if p == unix.IPPROTO_TCP && len(g.ports) > 0 {
			b.rule(c, proto(p), theirs, state(expr.CtStateBitNEW), toLocal(), portIn(b.ports(g.ports...)), accept())
		}
		b.rule(c, proto(p), theirs, state(expr.CtStateBitNEW), toLocal(), reject())
	}
	b.rule(c, theirs, state(expr.CtStateBitNEW), toAny(b.networks(warmboot.NeverReachable())), reject())
	if err := b.commit(); err != nil {
		return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the kernel did not take the nftables rule", Err: err}
	}
	return nil
}

// watch puts the rules back whenever somebody has removed them, as reloading a firewall does that begins with `flush ruleset`, until unwatch.
func (g *guard) watch(log *slog.Logger) {
	var ctx context.Context
	ctx, g.stop = context.WithCancel(context.Background())
	g.watching.Go(func() { g.keep(ctx, log) })
}

func (g *guard) unwatch() {
	g.stop()
	g.watching.Wait()
}

func (g *guard) keep(ctx context.Context, log *slog.Logger) {
	look := time.NewTicker(watch)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		table, err := findTable(g.table())
		if err == nil && table == nil {
			if err = g.install(); err == nil {
				log.Warn("Somebody had removed the rules that keep microVMs in user mode off this machine; they are back", "table", g.table())
			}
		}
		if err != nil {
			log.Error("The rules that keep microVMs in user mode off this machine may be gone, and cannot be put back", "table", g.table(), "err", err)
		}
	}
}

// remove takes the rules away. Call it only when no VMM runs any more.
func (g *guard) remove() error {
	b, err := newBatch(nil, g.table())
	if err == nil {
		b.remove()
		err = b.commit()
	}
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "remove host network guard", Err: err}
	}
	return nil
}
