package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"warmboot"
	"warmboot/internal/durable"
	"warmboot/internal/vmm"
)

// record is ROOT/containers/ID/record.json: what must be known to take charge of a container again.
type record struct {
	ID warmboot.ID `json:"id"`
	// Generation is that of the latest lease that was obeyed.
	Generation int64 `json:"generation,omitempty"`
	// Container is what the control plane had started here: enough to tell it again if it has forgotten.
	Container *warmboot.Container `json:"container,omitempty"`
	Disk      vmm.Disk            `json:"disk"`
	BasedOn   string              `json:"based_on,omitempty"` // the snapshot whose data disk lies below Disk
	// EngineID is what Docker in a clone was given. A clone that died before its disk was written has the snapshot's own
	// on it, and must not get that when it boots again.
	EngineID string `json:"engine_id,omitempty"`

	// While a machine runs, or is about to.
	Slot    *int         `json:"slot,omitempty"`
	Network *vmm.Network `json:"network,omitempty"`
	Handle  *vmm.Handle  `json:"handle,omitempty"`
	// What its network is limited to, but for while an image is pulled.
	Egress    warmboot.Egress    `json:"egress,omitzero"`
	Bandwidth warmboot.Bandwidth `json:"bandwidth,omitzero"`
}

const recordFile = "record.json"

func (a *Agent) containerDir(id warmboot.ID) string {
	return filepath.Join(a.Root, "containers", string(id))
}

// write stores a record so that a reader sees the old or the new one, never half of it. It need not survive a power cut:
// that ends every microVM too.
func (r *record) write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+recordFile)
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

func readRecord(dir string) (*record, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	r := &record{}
	return r, json.Unmarshal(text, r)
}

// lockRoot makes sure that no other agent uses the storage root.
func lockRoot(root string) (func() error, error) {
	path := filepath.Join(root, "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: "open storage root", Err: err}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, warmboot.Errorf(warmboot.Conflict, "open storage root", "another warmboot uses %s; stop it, or choose another MANAGER_STORAGE_ROOT", root)
		}
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: "open storage root", Err: err}
	}
	return func() error { // closing alone would leave it locked for as long as a process that is being started has its copy
		return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
	}, nil
}

// ioError says what the operating system said, and what to do where that is known. It is nil for nil.
func ioError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case durable.Full(err):
		return &warmboot.Error{Code: warmboot.Exhausted, Op: op, Msg: "the disk is full; free space under the storage root and try again", Err: err}
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
