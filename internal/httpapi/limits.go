package httpapi

import (
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"warmboot"
)

// How many tokens that are not valid one address may send. Somebody who mistypes notices nothing of it.
const (
	failureBurst = 10
	failureRate  = rate.Limit(1. / 6) // a second
)

// limits bounds how often somebody may do something. Who does nothing for as long as an empty bucket takes to fill has a full one
// again, and need not be remembered.
type limits struct {
	rate  rate.Limit // a second
	burst int

	mu         sync.Mutex
	young, old map[string]*rate.Limiter // used in this period, in the last one
	turned     time.Time
}

// maxRemembered bounds how many are remembered of one period. More come only from somebody who has a lot of addresses.
const maxRemembered = 1 << 16

// newLimits returns nil, which limits nothing, if perSecond is 0.
func newLimits(perSecond rate.Limit, burst int) *limits {
	if perSecond == 0 {
		return nil
	}
	return &limits{rate: perSecond, burst: burst, young: map[string]*rate.Limiter{}, turned: time.Now()}
}

// take counts one thing that who does. If it is one too many, it tells after what time it would not be.
func (l *limits) take(who string) (wait time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	now := time.Now()
	r := l.of(who, now).ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return wait, false
	}
	return 0, true
}

// peek tells what take would, without counting.
func (l *limits) peek(who string) (wait time.Duration, ok bool) {
	now := time.Now()
	if missing := 1 - l.of(who, now).TokensAt(now); missing > 0 {
		return time.Duration(missing / float64(l.rate) * float64(time.Second)), false
	}
	return 0, true
}

// of finds who's bucket.
func (l *limits) of(who string, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	period := time.Duration(float64(l.burst) / float64(l.rate) * float64(time.Second))
	if now.Sub(l.turned) > period || len(l.young) >= maxRemembered {
		l.young, l.old, l.turned = map[string]*rate.Limiter{}, l.young, now
	}
	b := l.young[who]
	if b == nil {
		if b = l.old[who]; b == nil {
			b = rate.NewLimiter(l.rate, l.burst)
		}
		l.young[who] = b
	}
	return b
}

// tooMany answers who should ask less often.
func tooMany(w http.ResponseWriter, wait time.Duration, detail string) {
	seconds := int(math.Ceil(wait.Seconds()))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	writeProblem(w, newProblem(http.StatusTooManyRequests, warmboot.Exhausted, detail+"; wait "+strconv.Itoa(seconds)+" s, as Retry-After says"))
}

// sourceOf is the address that a request comes from. A proxy's headers are not believed: anybody can send them.
func sourceOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// networkOf is what is counted as one source: an IPv4 address, but the network that everybody with IPv6 has for himself.
func networkOf(source string) string {
	ip, err := netip.ParseAddr(source)
	if err != nil {
		return source
	}
	if ip = ip.Unmap(); ip.Is6() {
		if net, err := ip.WithZone("").Prefix(64); err == nil {
			return net.String()
		}
	}
	return ip.String()
}
