// Package nestedhost is a whole machine to test on: a small Debian under QEMU whose emulated processor offers AMD's hardware virtualization (SVM
// with nested paging), so that KVM works inside it on every host, also on one that has none. It boots in seconds, runs what it is told, and may
// be broken: its power can be cut, its disk filled, its clock set back.
//
// Build makes its root disk out of Debian packages, once; Boot starts a machine on a disk of its own, an overlay of that one. Inside are the
// distribution's kernel and systemd, cgroup v2, nftables, iproute2, and QEMU, which is newer there than on Debian bookworm. The
// machine has no network, only loopback.
//
// Commands reach it as they reach the product's guests, through an agent that systemd starts there. It is not on the disk: what a test
// does to the disk does not cut the test off. Files come and go through two directories that both machines see.
//
// Every wait has a limit, and a machine that hangs, panics or dies gives an error that quotes the end of its console. Nothing outlives Close, or
// the process that called Boot.
package nestedhost
