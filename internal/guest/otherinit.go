package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"warmboot"
)

// What the agent wants of a machine's init when it is not that itself.

// dockerUnit is what every distribution calls Docker's service.
const dockerUnit = "docker.service"

// underSystemd tells whether the machine's init is systemd; sd_booted(3).
func (g *Guest) underSystemd() bool { return !g.Init && exists(g.path("/run/systemd/system")) }

// otherAutostart tells whether the machine's init starts the Docker whose process is pid by itself, and how we know.
func (g *Guest) otherAutostart(ctx context.Context, pid int) (bool, string, error) {
	if g.underSystemd() {
		cgroup, err := os.ReadFile(procPath(pid, "cgroup"))
		if err != nil {
			return false, "", err
		}
		unit := unitOf(string(cgroup))
		if unit == "" {
			return false, fmt.Sprintf("process %d is none of systemd's services", pid), nil
		}
		is, err := g.unit(ctx, unit)
		if err != nil {
			return false, "", err
		}
		// A unit that cannot be enabled is started because another one that is started wants it.
		auto := is["UnitFileState"] == "enabled" || is["UnitFileState"] == "static" && is["WantedBy"]+is["RequiredBy"] != ""
		return auto, fmt.Sprintf("process %d is %s, which systemd says is %s", pid, unit, is["UnitFileState"]), nil
	}
	if exists(g.path("/etc/runlevels/default/docker")) {
		return true, "OpenRC starts it in the default runlevel", nil
	}
	return false, "nothing is known to start it at boot", nil
}

// unitOf finds the service in the text of a /proc/PID/cgroup, whose lines are number:controllers:path. systemd's are in the one
// hierarchy of version 2, or in the one called name=systemd.
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		for dir := f[2]; dir != "/" && dir != "."; dir = path.Dir(dir) { // a service may have groups of its own below
			if strings.HasSuffix(dir, ".service") {
				return path.Base(dir)
			}
		}
	}
	return ""
}

// unit asks systemd for what it knows of a unit, whether that exists or not.
func (g *Guest) unit(ctx context.Context, name string) (map[string]string, error) {
	const properties = "--property=ActiveState,SubState,Result,UnitFileState,WantedBy,RequiredBy"
	code, out, err := g.run(ctx, "systemctl", "show", properties, "--", name)
	if err == nil && code != 0 {
		err = fmt.Errorf("systemctl show %s: exit status %d: %.200s", name, code, out)
	}
	is := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			is[k] = v
		}
	}
	return is, err
}

// otherBooted waits until systemd has done all that a boot is made of, and returns what it says of it then: "running", or
// "degraded" if something has failed. It is another word if ctx ends before, or systemd cannot be asked.
func (g *Guest) otherBooted(ctx context.Context) string {
	_, out, err := g.run(ctx, "systemctl", "is-system-running", "--wait") // its exit status tells no more than the word
	switch {
	case ctx.Err() != nil:
		return "starting"
	case err != nil:
		return err.Error()
	}
	return strings.TrimSpace(out)
}

// deadDocker is why Docker will not answer however long one waits: systemd has booted and neither runs nor is starting it. It is nil
// as long as there is hope, and waits for systemd to have booted.
func (g *Guest) deadDocker(ctx context.Context) error {
	const op = "wait for Docker"
	if !g.underSystemd() {
		return nil
	}
	if state := g.otherBooted(ctx); state != "running" && state != "degraded" {
		return nil
	}
	is, _ := g.unit(ctx, dockerUnit) // an error leaves what follows unknown
	switch {
	case is["ActiveState"] != "inactive" && is["ActiveState"] != "failed":
		return nil
	case is["UnitFileState"] == "enabled" || is["UnitFileState"] == "static":
		return warmboot.Errorf(warmboot.Unavailable, op, "Docker does not run%s", g.otherNote(ctx))
	}
	return warmboot.Errorf(warmboot.Invalid, op, "Docker is not set to start by itself in the runtime image: systemd has booted, and says that %s is %s; enable it in the image (systemctl enable docker) and register that again",
		dockerUnit, cmp.Or(is["UnitFileState"], "not there"))
}

// otherNote is what the machine's init knows of Docker, for an error's text.
func (g *Guest) otherNote(ctx context.Context) string {
	if !g.underSystemd() {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	note := ""
	if is, err := g.unit(ctx, dockerUnit); err == nil {
		note = fmt.Sprintf("; systemd says that %s is %s (%s)", dockerUnit, is["ActiveState"], is["Result"])
	}
	if _, out, err := g.run(ctx, "journalctl", "--merge", "--unit="+dockerUnit, "--lines=3", "--output=cat", "--no-pager", "--quiet"); err == nil && strings.TrimSpace(out) != "" {
		note += fmt.Sprintf("; its journal ends with %.600q", strings.TrimSpace(out))
	}
	return note
}

// restartDocker lets the machine's init start Docker again, or now if it has not yet.
func (g *Guest) restartDocker(ctx context.Context) error {
	var argv []string
	switch {
	case g.underSystemd():
		argv = []string{"systemctl", "restart", dockerUnit}
	case exists(g.path("/run/openrc")):
		argv = []string{"rc-service", "docker", "restart"}
	default:
		return errors.New("it is not ours, and the init that has started it is not known")
	}
	code, out, err := g.run(ctx, argv...)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit status %d: %.200s", strings.Join(argv, " "), code, out)
	}
	return err
}

// renewJournal makes systemd's journal begin anew under the machine's new machine-id, which it reads when it starts and writes into
// every line. systemd starts it again at once and has kept the connections of those who log.
func (g *Guest) renewJournal() {
	if !g.underSystemd() {
		return
	}
	pids, err := os.ReadFile("/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs")
	if err != nil {
		return // there is none
	}
	var pid int
	_, err = fmt.Sscan(string(pids), &pid)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGTERM)
	}
	if err != nil {
		g.Log.Warn("the journal still has the old machine-id", "error", err)
	}
}
