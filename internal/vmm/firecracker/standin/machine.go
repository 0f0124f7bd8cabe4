package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// machine is the microVM of this life.
type machine struct {
	life    *life
	profile Profile
	release release
	id      string
	fatal   error       // its life ends after the answer
	api     *sync.Mutex // held while a call is made and answered

	// What has been put before the start, or loaded.
	touched bool // so a snapshot can be loaded no more
	config  config
	drives  map[string]*os.File
	listen  *net.UnixListener // of vsock
	memory  []byte
	taps    map[string]*os.File // by the interface's id
	metrics int                 // a file descriptor, or 0
	serial  int                 // a file descriptor: of the guest's console

	mu       sync.Mutex
	changed  *sync.Cond // of state
	state    string     // as the API tells it
	since    time.Time  // when it last began to run
	frozen   bool       // a snapshot has been made in this pause
	deaf     bool
	restored bool
	// unsettled: the first connection to the restored guest is lost, as it can be with older releases; here it always is.
	unsettled bool
	conns     map[net.Conn]bool // to the guest
}

// config is what a snapshot keeps of a machine, beside its memory.
type config struct {
	VCPUs       int      `json:"vcpus"`
	MemoryMiB   int      `json:"memory_mib"`
	Boot        *boot    `json:"boot,omitempty"`
	Drives      []drive  `json:"drives"`
	Network     []iface  `json:"network"`
	Vsock       *vsock   `json:"vsock,omitempty"`
	Balloon     *balloon `json:"balloon,omitempty"`
	Entropy     bool     `json:"entropy"`
	CPUTemplate bool     `json:"cpu_template"`
}

type boot struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path"`
	Args   string `json:"boot_args"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	ReadOnly bool   `json:"is_read_only"`
	Root     bool   `json:"is_root_device"`
}

type iface struct {
	ID   string `json:"iface_id"`
	Host string `json:"host_dev_name"`
	MAC  string `json:"guest_mac"`
}

type vsock struct {
	CID uint32 `json:"guest_cid"`
	UDS string `json:"uds_path"`
}

type balloon struct {
	AmountMiB int  `json:"amount_mib"`
	OOM       bool `json:"deflate_on_oom"`
	Stats     int  `json:"stats_polling_interval_s"`
}

// The states, as the API tells them.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

func newMachine(p Profile, r release, id string, l *life, api *sync.Mutex) *machine {
	m := &machine{life: l, profile: p, api: api, release: r, id: id, state: notStarted, drives: map[string]*os.File{}, taps: map[string]*os.File{}, conns: map[net.Conn]bool{},
		serial: unix.Stdout, config: config{VCPUs: 1, MemoryMiB: 128}}
	m.changed = sync.NewCond(&m.mu)
	return m
}

var (
	errBefore = errors.New("the requested operation is not supported before starting the microVM")
	errAfter  = errors.New("the requested operation is not supported after starting the microVM")
)

// do does a call whose body has been checked. The API makes one at a time.
func (m *machine) do(call, id string, body []byte) (any, error) {
	started := m.status() != notStarted
	switch call {
	case "GET /":
		return map[string]string{"id": m.id, "state": m.status(), "vmm_version": m.profile.Version, "app_name": "Firecracker"}, nil
	case "GET /version":
		return map[string]string{"firecracker_version": m.profile.Version}, nil
	case "GET /machine-config":
		return map[string]any{"vcpu_count": m.config.VCPUs, "mem_size_mib": m.config.MemoryMiB, "smt": false, "track_dirty_pages": false}, nil
	case "GET /balloon":
		if m.config.Balloon == nil {
			return nil, errors.New("balloon config error: no balloon device found")
		}
		return m.config.Balloon, nil
	case "PUT /actions":
		return nil, m.action(body, started)
	case "PUT /snapshot/load":
		if started {
			return nil, errAfter
		}
		return nil, m.load(body)
	}
	if strings.HasPrefix(call, "PUT ") && call != "PUT /snapshot/create" {
		if started {
			return nil, errAfter
		}
		return nil, m.put(call, id, body)
	}
	if !started {
		return nil, errBefore
	}
	switch call {
	case "PUT /snapshot/create":
		return nil, m.save(body)
	case "PATCH /vm":
		return nil, m.setState(body)
	case "PATCH /balloon":
		return nil, m.inflate(body)
	case "GET /balloon/statistics", "PATCH /balloon/statistics":
		if m.config.Balloon == nil || m.config.Balloon.Stats == 0 {
			return nil, errors.New("balloon error: statistics for the balloon device are not enabled")
		}
		if strings.HasPrefix(call, "PATCH") {
			return nil, json.Unmarshal(body, m.config.Balloon)
		}
		return m.balloonStats(), nil
	}
	return nil, fmt.Errorf("the stand-in has not learned %s", call)
}

// put takes a part of a machine that has not started.
func (m *machine) put(call, id string, body []byte) (err error) {
	switch call {
	case "PUT /metrics":
		if m.metrics != 0 {
			return errors.New("metrics error: cannot initialize the metrics system: it is already")
		}
		m.metrics, err = output(body, "metrics_path", 0)
		return err
	case "PUT /logger":
		_, err = output(body, "log_path", 0) // nothing is logged
		return err
	case "PUT /serial":
		m.serial, err = output(body, "serial_out_path", unix.Stdout)
		return err
	case "PUT /cpu-config":
		m.config.CPUTemplate = true // it does not keep a snapshot from being loaded
		return nil
	}
	m.touched = true
	switch call {
	case "PUT /machine-config":
		var c struct {
			VCPUs  int  `json:"vcpu_count"`
			Memory int  `json:"mem_size_mib"`
			SMT    bool `json:"smt"`
		}
		if err := json.Unmarshal(body, &c); err != nil {
			return err
		}
		if c.VCPUs < 1 || c.VCPUs > 32 || c.SMT && c.VCPUs%2 != 0 && c.VCPUs != 1 {
			return errors.New("machine config error: the vCPU count is invalid")
		}
		if c.Memory < 1 {
			return errors.New("machine config error: the memory size is invalid")
		}
		m.config.VCPUs, m.config.MemoryMiB = c.VCPUs, c.Memory
	case "PUT /boot-source":
		b := &boot{}
		if err := json.Unmarshal(body, b); err != nil {
			return err
		}
		for _, path := range []string{b.Kernel, b.Initrd} {
			if path == "" {
				continue
			}
			f, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("boot source error: %w", rust(err))
			}
			f.Close()
		}
		if len(b.Args) > 2048 {
			return errors.New("boot source error: the kernel command line is invalid: it is too long")
		}
		m.config.Boot = b
	case "PUT /drives/{}":
		d := drive{}
		if err := json.Unmarshal(body, &d); err != nil {
			return err
		}
		if d.ID != id {
			return errors.New("path_id does not match the id in the body")
		}
		for _, other := range m.config.Drives {
			if other.ID == id {
				return errors.New("the stand-in does not replace drives")
			}
		}
		if err := m.open(d); err != nil {
			return fmt.Errorf("drive config error: unable to create the virtio block device: %w", err)
		}
		if d.Root {
			m.config.Drives = append([]drive{d}, m.config.Drives...)
		} else {
			m.config.Drives = append(m.config.Drives, d)
		}
	case "PUT /network-interfaces/{}":
		n := iface{}
		if err := json.Unmarshal(body, &n); err != nil {
			return err
		}
		if n.ID != id {
			return errors.New("path_id does not match the id in the body")
		}
		if n.MAC != "" {
			if _, err := net.ParseMAC(n.MAC); err != nil {
				return err
			}
		}
		m.config.Network = slices.DeleteFunc(m.config.Network, func(other iface) bool { return other.ID == id })
		if err := m.attach(n); err != nil {
			return fmt.Errorf("could not create the network device: %w", err)
		}
		m.config.Network = append(m.config.Network, n)
	case "PUT /vsock":
		v := &vsock{}
		if err := json.Unmarshal(body, v); err != nil {
			return err
		}
		if v.CID < 3 {
			return errors.New("vsock config error: the CID is taken")
		}
		m.config.Vsock = v
		if err := m.bind(); err != nil {
			return fmt.Errorf("vsock config error: %w", err)
		}
	case "PUT /entropy":
		m.config.Entropy = true
	case "PUT /balloon":
		b := &balloon{}
		if err := json.Unmarshal(body, b); err != nil {
			return err
		}
		m.config.Balloon = b
	}
	return nil
}

// rust words an error of the operating system as Firecracker does, with its number at the end.
func rust(err error) error {
	var no unix.Errno
	if errors.As(err, &no) {
		return fmt.Errorf("%s (os error %d)", no.Error(), int(no))
	}
	return err
}

func (m *machine) open(d drive) error {
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, mode, 0)
	if err != nil {
		return rust(err)
	}
	m.drives[d.ID] = f
	return nil
}

// attach takes a network interface's TAP, in the network namespace of this process, for as long as the machine lives. Nobody else can have it
// then. One that is not there is made, if this process may.
func (m *machine) attach(n iface) error {
	if old := m.taps[n.ID]; old != nil {
		old.Close()
		delete(m.taps, n.ID)
	}
	request, err := unix.NewIfreq(n.Host)
	if err != nil {
		return errors.New("open tap device failed: invalid interface name")
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open tap device failed: couldn't open /dev/net/tun: %w", rust(err))
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("open tap device failed: error while creating ifreq structure: %w. invalid TUN/TAP backend provided by %s", rust(err), n.Host)
	}
	m.taps[n.ID] = os.NewFile(uintptr(fd), n.Host)
	return nil
}

// output opens the file that a body names for something to be written to; without a name it is the default. Older releases make no such file.
func output(body []byte, field string, byDefault int) (fd int, err error) {
	var b map[string]any
	if err := json.Unmarshal(body, &b); err != nil {
		return 0, err
	}
	path, _ := b[field].(string)
	if path == "" {
		return byDefault, nil
	}
	if fd, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("cannot open %s: %w", field, rust(err))
	}
	return fd, nil
}

func (m *machine) bind() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.config.Vsock.UDS, Net: "unix"})
	if err != nil {
		return fmt.Errorf("cannot bind the host-side unix socket: %w", rust(err))
	}
	l.SetUnlinkOnClose(false)
	m.listen = l
	return nil
}

func (m *machine) action(body []byte, started bool) error {
	var a struct {
		Type string `json:"action_type"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	switch {
	case a.Type == "InstanceStart" && started:
		return errAfter
	case a.Type == "InstanceStart":
		return m.start()
	case a.Type != "FlushMetrics" && a.Type != "SendCtrlAltDel":
		return fmt.Errorf("unknown variant %q", a.Type)
	case !started:
		return errBefore
	case a.Type == "FlushMetrics" && m.metrics != 0:
		_, err := unix.Write(m.metrics, []byte("{}\n"))
		return err
	case a.Type == "SendCtrlAltDel" && !m.profile.Faults.Stubborn:
		m.life.run(func() {
			m.when(func() {})
			m.down()
		})
	}
	return nil
}

// start boots the machine.
func (m *machine) start() error {
	b := m.config.Boot
	if b == nil {
		return errors.New("start microvm error: cannot start microvm without kernel configuration")
	}
	magic := make([]byte, 4)
	f, err := os.Open(b.Kernel)
	if err == nil {
		_, err = f.Read(magic)
		f.Close()
	}
	if err != nil || string(magic) != "\x7fELF" {
		return errors.New("start microvm error: cannot load the kernel: invalid ELF magic number")
	}
	if m.memory, err = unix.Mmap(-1, 0, m.config.MemoryMiB<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("start microvm error: cannot create guest memory: %w", rust(err))
	}
	newGuest(m.memory)
	m.setRunning()
	m.life.run(m.bootGuest)
	return nil
}

// bootGuest is what the guest's kernel does.
func (m *machine) bootGuest() {
	b, say := m.config.Boot, func(string) {}
	if strings.Contains(b.Args, "console=ttyS0") {
		say = m.print
	}
	say("Linux version 6.1.0-standin")
	if s := m.profile.Faults.BootSays; s != "" {
		say(s)
		m.down()
	}
	if b.Initrd == "" && len(m.config.Drives) == 0 {
		say("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)")
		if strings.Contains(b.Args, "reboot=k") && strings.Contains(b.Args, "panic=-1") {
			m.down()
		}
		return
	}
	say("Run /init as init process")
	m.life.sleep(m.profile.Faults.BootTime)
	m.when(func() { m.life.run(m.serveVsock) })
}

// print writes a line to the serial console. When nobody can ever read it Firecracker hangs, because its handler of the signal prints as
// well; when only nobody does, the line is lost.
func (m *machine) print(line string) {
	// Not by fmt: Go would wait until there is room.
	if _, err := unix.Write(m.serial, []byte("[    0.000000] "+line+"\r\n")); errors.Is(err, unix.EPIPE) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.life.idle()
	}
}

// down ends this life because its guest has ended, once the API has no call to answer.
func (m *machine) down() {
	m.api.Lock()
	defer m.api.Unlock()
	m.life.end(0)
}

// closeAll closes and unmaps what the machine had, as the end of a process does. Nothing else runs any more.
func (m *machine) closeAll() error {
	var errs []error
	if m.listen != nil {
		m.listen.Close() // it may be already
	}
	for _, files := range []map[string]*os.File{m.drives, m.taps} {
		for _, f := range files {
			errs = append(errs, f.Close())
		}
	}
	if m.metrics != 0 {
		errs = append(errs, unix.Close(m.metrics))
	}
	if m.serial != unix.Stdout {
		errs = append(errs, unix.Close(m.serial))
	}
	if m.memory != nil {
		errs = append(errs, unix.Munmap(m.memory))
	}
	return errors.Join(errs...)
}

func (m *machine) status() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// when runs f while the machine runs: it waits while the machine is paused, and a pause waits for it.
func (m *machine) when(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.state != running {
		m.life.check()
		m.changed.Wait()
	}
	f()
}

func (m *machine) setRunning() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.since = running, time.Now()
	m.changed.Broadcast()
}

func (m *machine) setState(body []byte) error {
	var v struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	switch v.State {
	case "Paused":
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.state == running && !m.profile.Faults.Restless {
			m.state, m.frozen = paused, false
			guestOf(m.memory).tick(time.Since(m.since))
		}
	case "Resumed":
		if m.status() == paused {
			m.mu.Lock()
			m.deaf = m.deaf || m.release.deafAfterResume() && !m.frozen
			m.mu.Unlock()
			m.setRunning()
		}
	default:
		return fmt.Errorf("unknown variant %q, expected Paused or Resumed", v.State)
	}
	return nil
}

// inflate sets the balloon; the guest gives up memory that it does not use, and first what it has used before: that lies at the beginning.
func (m *machine) inflate(body []byte) error {
	b := m.config.Balloon
	if b == nil {
		return errors.New("balloon error: no balloon device found")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := json.Unmarshal(body, b); err != nil {
		return err
	}
	if b.AmountMiB > m.config.MemoryMiB {
		return errors.New("balloon error: too many pages are requested")
	}
	if given := m.given(); given > 0 && !m.profile.Faults.Hollow {
		unused := m.memory[fillAt+guestOf(m.memory).filled()<<20:]
		if err := unix.Madvise(unused[:given<<20], unix.MADV_DONTNEED); err != nil {
			return rust(err)
		}
	}
	return nil
}

// given is how many MiB the guest does without. It takes back what it comes to need, as deflate_on_oom lets it. Runs with the lock.
func (m *machine) given() int {
	if m.profile.Faults.Stubborn || m.config.Balloon == nil {
		return 0
	}
	return min(m.config.Balloon.AmountMiB, m.unused())
}

// unused is how many MiB the guest has no use for, those included that it does without. Runs with the lock.
func (m *machine) unused() int {
	return max(0, m.config.MemoryMiB-needed-guestOf(m.memory).filled())
}

func (m *machine) balloonStats() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	given := m.given()
	return map[string]int{
		"target_pages": m.config.Balloon.AmountMiB << 8, "actual_pages": given << 8,
		"target_mib": m.config.Balloon.AmountMiB, "actual_mib": given,
		"free_memory": (m.unused() - given) << 20, "total_memory": (m.config.MemoryMiB - given) << 20,
	}
}
