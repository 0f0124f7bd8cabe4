package cli

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The lines are a kernel's own, with other users.
const tables = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:46A0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0000000000000000 100 0 0 10 0
   1: 00000000:46A0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0000000000000000 100 0 0 10 0
   2: 0A00000A:46A0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 3 1 0000000000000000 100 0 0 10 0
   3: 0100007F:46A0 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1002        0 4 1 0000000000000000 20 4 30 10 -1
   4: 0100007F:46A1 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1003        0 5 1 0000000000000000 100 0 0 10 0
   5: 00000000000000000000000001000000:46A0 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1004        0 6 1 0000000000000000 100 0 0 10 0
   6: 0000000000000000FFFF00000100007F:46A0 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1005        0 7 1 0000000000000000 100 0 0 10 0
`

func TestListeners(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tcp")
	if err := os.WriteFile(path, []byte(tables), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := listeners(path, 18080)
	if want := []int{1000, 0, 1004, 1005}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := listeners(path+"6", 18080); err != nil || got != nil {
		t.Errorf("a table that is not there: %v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("0: what 00000000:0000 0A 0 0 0 1000"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listeners(path, 18080); err == nil {
		t.Error("a table that cannot be understood says that nobody listens")
	}
}

func TestListenersOfThisMachine(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		var all []int
		for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			uids, err := listeners(table, port)
			if err != nil {
				t.Error(err)
			}
			all = append(all, uids...)
		}
		if !slices.Equal(all, []int{os.Geteuid()}) {
			t.Errorf("%s: the users %v listen", address, all)
		}
		_ = l.Close()
	}
}
