package standin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A state file is this line, the format's version, a line feed, the config as JSON, and a checksum of all of it.
const stateMagic = "warmboot stand-in "

var crcTable = crc64.MakeTable(crc64.ECMA)

// save writes a snapshot. Connections to the guest do not outlive it.
func (m *machine) save(body []byte) error {
	var s struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	if s.Type != "" && s.Type != "Full" {
		return errors.New("the stand-in makes full snapshots only")
	}
	if m.status() != paused {
		return errors.New("create snapshot error: cannot save the microVM state: operation not allowed: it is not paused")
	}
	text, err := json.Marshal(m.config)
	if err != nil {
		return err
	}
	state := append([]byte(stateMagic+m.profile.SnapshotVersion+"\n"), text...)
	state = binary.LittleEndian.AppendUint64(state, crc64.Checksum(state, crcTable))
	if err := write(s.State, os.O_TRUNC, state); err != nil {
		return fmt.Errorf("create snapshot error: cannot write the snapshot backing file: %w", rust(err))
	}
	if err := write(s.Memory, 0, m.memory); err != nil {
		return fmt.Errorf("create snapshot error: cannot write the memory backing file: %w", rust(err))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.frozen = true
	for c := range m.conns {
		c.Close()
	}
	return nil
}

func write(path string, mode int, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// load loads a snapshot. When it fails on the way the process is of no more use.
func (m *machine) load(body []byte) error {
	var l struct {
		State     string  `json:"snapshot_path"`
		Resume    bool    `json:"resume_vm"`
		MemFile   string  `json:"mem_file_path"`
		Overrides []iface `json:"network_overrides"`
		Vsock     *vsock  `json:"vsock_override"`
		Memory    struct {
			Type string `json:"backend_type"`
			Path string `json:"backend_path"`
		} `json:"mem_backend"`
	}
	if err := json.Unmarshal(body, &l); err != nil {
		return err
	}
	if (l.MemFile == "") == (l.Memory.Path == "") {
		return errors.New("exactly one of mem_backend and mem_file_path is needed")
	}
	if l.Memory.Type != "" && l.Memory.Type != "File" {
		return errors.New("the stand-in has no page fault handler")
	}
	if m.touched {
		return errors.New("load snapshot error: loading a microVM snapshot not allowed after configuring boot-specific resources")
	}
	err := m.restore(l.State, max(l.Memory.Path, l.MemFile), l.Overrides, l.Vsock)
	if err != nil {
		m.fatal = err
		return fmt.Errorf("load snapshot error: failed to restore from snapshot: %w", err)
	}
	m.mu.Lock()
	m.state = paused
	m.frozen, m.restored, m.unsettled = true, true, !m.release.from(16, 0)
	m.mu.Unlock()
	m.life.run(m.wake)
	if l.Resume {
		m.setRunning()
	}
	return nil
}

// wake is the guest's first moment after a restore.
func (m *machine) wake() {
	alive := false
	m.when(func() { alive = guestOf(m.memory).alive() })
	if !alive {
		fmt.Fprintln(os.Stderr, "the guest crashed: its memory is not what it was")
		m.down() // a triple fault ends Firecracker as a reboot does
	}
	m.serveVsock()
}

func (m *machine) restore(stateFile, memoryFile string, network []iface, override *vsock) error {
	state, err := os.ReadFile(stateFile)
	if err != nil {
		return fmt.Errorf("failed to get snapshot state from file: failed to open snapshot file: %w", rust(err))
	}
	if m.config, err = m.readState(state); err != nil && !m.profile.Faults.AnyState {
		return fmt.Errorf("failed to get snapshot state from file: failed to load snapshot state from file: %w", err)
	}
	if m.profile.Faults.AnyState {
		m.config.MemoryMiB = max(m.config.MemoryMiB, 2)
	}
	if m.memory, err = mapFile(memoryFile, m.config.MemoryMiB<<20, m.profile.Faults.SharedMemory); err != nil {
		return fmt.Errorf("failed to load guest memory: error creating guest memory from file: %w", rust(err))
	}
	for _, o := range network {
		found := false
		for i := range m.config.Network {
			if m.config.Network[i].ID == o.ID {
				m.config.Network[i].Host, found = o.Host, true
			}
		}
		if !found {
			return errors.New("failed to get snapshot state from file: unknown network device")
		}
	}
	for _, n := range m.config.Network {
		if err := m.attach(n); err != nil {
			return fmt.Errorf("failed to build microVM from snapshot: failed to restore devices: %w", err)
		}
	}
	for _, d := range m.config.Drives {
		if err := m.open(d); err != nil {
			return fmt.Errorf("failed to build microVM from snapshot: failed to restore devices: block: %w", err)
		}
	}
	if v := m.config.Vsock; v != nil {
		if override != nil {
			v.UDS = override.UDS
		}
		if err := m.bind(); err != nil {
			return fmt.Errorf("failed to build microVM from snapshot: failed to restore devices: vsock: %w", err)
		}
	}
	return nil
}

func (m *machine) readState(state []byte) (c config, err error) {
	n := len(state) - 8
	if n < 0 {
		return c, errors.New("snapshot file is smaller than CRC length")
	}
	head, text, ok := bytes.Cut(state[:n], []byte("\n"))
	version, magic := bytes.CutPrefix(head, []byte(stateMagic))
	switch {
	case !ok || !magic:
		return c, errors.New("magic value does not match")
	case string(version) != m.profile.SnapshotVersion:
		return c, fmt.Errorf("invalid data version: %s", version)
	case crc64.Checksum(state[:n], crcTable) != binary.LittleEndian.Uint64(state[n:]):
		return c, errors.New("CRC64 validation failed")
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("deserialization: %w", err)
	}
	return c, nil
}

func mapFile(path string, size int, shared bool) ([]byte, error) {
	mode, sharing := os.O_RDONLY, unix.MAP_PRIVATE
	if shared {
		mode, sharing = os.O_RDWR, unix.MAP_SHARED
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < int64(size) {
		return nil, fmt.Errorf("the file has %d bytes of %d", info.Size(), size)
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, sharing)
}

// uptime is how long the machine has run, its life before a snapshot included and pauses not. Runs with the lock.
func (m *machine) uptime() time.Duration {
	d := guestOf(m.memory).uptime()
	if m.state == running {
		d += time.Since(m.since)
	}
	return d
}
