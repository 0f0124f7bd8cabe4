package httpapi

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(2, 4) // two a second, four at once
		take := func(who string, want bool, wantWait time.Duration) {
			t.Helper()
			peeked, may := l.peek(who)
			wait, ok := l.take(who)
			if ok != want || wait != wantWait || may != ok || peeked.Round(time.Millisecond) != wait.Round(time.Millisecond) {
				t.Fatalf("take(%s) = %s, %t; peek had said %s, %t; want %s, %t", who, wait, ok, peeked, may, wantWait, want)
			}
		}
		for range 4 {
			take("a", true, 0)
		}
		for range 3 { // who is refused does not wait longer for having asked
			take("a", false, 500*time.Millisecond)
		}
		take("b", true, 0)
		time.Sleep(500 * time.Millisecond)
		take("a", true, 0)
		take("a", false, 500*time.Millisecond)

		// Who comes again in the next period is remembered; who does not is forgotten, and had a full bucket anyway.
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			take("a", true, 0)
			take("a", false, 500*time.Millisecond)
		}
		if n := len(l.young) + len(l.old); n > 2 || l.young["b"] != nil || l.old["b"] != nil {
			t.Errorf("%d are remembered", n)
		}
		for range 4 {
			take("b", true, 0)
		}
		take("b", false, 500*time.Millisecond)
	})
}

func TestNoLimit(t *testing.T) {
	t.Parallel()
	l := newLimits(0, 1)
	for range 1000 {
		if _, ok := l.take("a"); !ok {
			t.Fatal("refused")
		}
	}
}

func TestManyAddressesAreNotAllRemembered(t *testing.T) {
	t.Parallel()
	l := newLimits(1, 1)
	for i := range 3 * maxRemembered {
		l.take(string(rune(i)) + "x" + time.Duration(i).String())
	}
	if n := len(l.young) + len(l.old); n > 2*maxRemembered {
		t.Errorf("%d are remembered", n)
	}
}

func TestSources(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string][2]string{
		"127.0.0.1:1234":           {"127.0.0.1", "127.0.0.1"},
		"[::ffff:10.0.0.1]:1":      {"::ffff:10.0.0.1", "10.0.0.1"},
		"[2001:db8:1:2:3:4:5:6]:1": {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		"[2001:db8:1:2::9]:1":      {"2001:db8:1:2::9", "2001:db8:1:2::/64"},
		"[fe80::1%eth0]:1":         {"fe80::1%eth0", "fe80::/64"},
		"@":                        {"@", "@"},
	} {
		source := sourceOf(&http.Request{RemoteAddr: remote, Header: http.Header{"X-Forwarded-For": {"1.2.3.4"}}})
		if got := [2]string{source, networkOf(source)}; got != want {
			t.Errorf("%s: %q, want %q", remote, got, want)
		}
	}
}
