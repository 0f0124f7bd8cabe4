package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/vmm"
)

// telling is a machine of which only the console is left.
type telling struct {
	vmm.Machine
	console string
}

func (m telling) Console() string { return m.console }

func TestLastWords(t *testing.T) {
	t.Parallel()
	const oops = "[   11.09] BUG: unable to handle page fault for address: ffffc90000ca7a68\r\n" +
		"[   11.09] Oops: 0002 [#1] PREEMPT SMP NOPTI\r\n[   11.09] CPU: 0 PID: 232 Comm: dockerd\r\n[   11.09] RIP: 0010:__text_poke+0x29c/0x400\r\n" +
		"[   11.09] RAX: 0000000000000000\r\n[   11.09] PKRU: 55555554\r\n[   11.09] Kernel panic - not syncing: Fatal exception in interrupt\r\n[   11.09] Kernel Offset: disabled\r\n"
	for name, c := range map[string]struct{ console, want string }{
		"nothing":  {"\r\n", ""},
		"an end":   {"one\r\ntwo\r\nthree\r\nfour\r\n", `; the guest's console says "two\nthree\nfour"`},
		"a crash":  {oops, `; the guest's console says "[   11.09] BUG: unable to handle page fault for address: ffffc90000ca7a68\n[   11.09] Oops: 0002 [#1] PREEMPT SMP NOPTI\n[   11.09] RIP: 0010:__text_poke+0x29c/0x400\n[   11.09] Kernel panic - not syncing: Fatal exception in interrupt"`},
		"a flood":  {strings.Repeat("BUG: \x00"+strings.Repeat("x", 10_000)+"\n", 100), `; the guest's console says "` + strings.Join(slices.Repeat([]string{`BUG: \x00` + strings.Repeat("x", consoleWidth-6)}, crashLines), `\n`) + `"`},
		"no lines": {"", ""},
	} {
		if got := lastWords(telling{console: c.console}); got != c.want {
			t.Errorf("%s: it says\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// A machine that ends while its container is started is another's turn, unless the command may have run and must not run twice.
func TestWhatIsStartedAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy warmboot.RestartName
		asked  bool
		again  bool
	}{
		{"", false, true},
		{warmboot.RestartNo, false, true},
		{"", true, false},
		{warmboot.RestartNo, true, false},
		{warmboot.RestartAlways, true, true},
		{warmboot.RestartUnlessStopped, true, true},
		{warmboot.RestartOnFailure, true, true},
	} {
		err := endedBeforeStart(warmboot.Container{Spec: warmboot.ContainerSpec{RestartPolicy: warmboot.RestartPolicy{Name: tt.policy}}}, tt.asked, "it ended", "; its console says so")
		if errors.Is(err, controlplane.ErrNotStarted) != tt.again || warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "; its console says so") {
			t.Errorf("%q, asked %v: %v", tt.policy, tt.asked, err)
		}
	}
}
