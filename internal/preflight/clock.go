package preflight

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// checkClock asks the kernel whether somebody keeps its clock right.
func checkClock(context.Context, Config) Check {
	var t unix.Timex // asks, and changes nothing
	state, err := unix.Adjtimex(&t)
	return clock(state, t, err)
}

// clock judges the kernel's answer (man 2 adjtimex).
func clock(state int, t unix.Timex, err error) Check {
	const name = "clock"
	switch {
	case err != nil:
		return Check{name, Warn, "the kernel does not tell whether it is right: " + err.Error(), "`timedatectl` may; in a container, allow the system call adjtimex"}
	case state == unix.TIME_ERROR, t.Status&unix.STA_UNSYNC != 0:
		return Check{name, Warn, "nothing keeps it right; guests take their time from it, and certificates and tokens are valid by it",
			"`timedatectl set-ntp true`, or `apt-get install systemd-timesyncd`"}
	}
	return Check{name, OK, "synchronised, to " + (time.Duration(t.Esterror) * time.Microsecond).String(), ""}
}
