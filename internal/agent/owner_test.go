package agent

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"warmboot"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// A VMM may come to snapshots by their paths if it is in the readers' group, and to nothing that is another container's. Nobody else on the host
// comes to either.
func TestWhatIsAContainersIsClosedToOthers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root runs VMMs as other users")
	}
	r := newBootRig(t)
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: r.img.ID}
	built, err := r.BuildSnapshot(t.Context(), snap, r.img, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	warm, cold := r.machine("warm", 0), r.machine("cold", 0)
	if _, err := r.WarmBoot(t.Context(), warm, snap); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ColdBoot(t.Context(), cold); err != nil {
		t.Fatal(err)
	}
	may := func(owner vmm.Owner, command ...string) bool {
		t.Helper()
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.UID, Gid: owner.GID, Groups: owner.Groups()}}
		return cmd.Run() == nil
	}
	sibling := vmm.Owner{UID: r.OwnerBase + 99, GID: r.OwnerBase + 99, Readers: r.OwnerBase}
	stranger := vmm.Owner{UID: sibling.UID, GID: sibling.GID} // as one in a jail is
	for _, name := range snapshot.DataFiles() {
		file := filepath.Join(built.Path, name)
		if !may(sibling, "head", "-c", "1", file) || may(stranger, "head", "-c", "1", file) || may(sibling, "dd", "if=/dev/null", "conv=notrunc", "of="+file) {
			info, err := os.Stat(file)
			t.Errorf("%s is not for readers to read, and for nobody else: %v, %v", name, info, err)
		}
	}
	users, groups := map[uint32]bool{}, map[uint32]bool{}
	for _, m := range []warmboot.ID{warm.Container.ID, cold.Container.ID} {
		dir := r.containerDir(m)
		c := &container{dir: dir}
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			open := fs.FileMode(0)
			if path == dir {
				open = 0o011 // VMMs pass through
			}
			if info.Mode().Perm()&0o077&^open != 0 {
				t.Errorf("%s has mode %v", strings.TrimPrefix(path, dir), info.Mode())
			}
			if path == c.dataDisk() {
				st := info.Sys().(*syscall.Stat_t)
				users[st.Uid], groups[st.Gid] = true, true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, try := range [][]string{{"ls", dir}, {"ls", c.vmDir()}, {"head", "-c", "1", c.dataDisk()}, {"head", "-c", "1", filepath.Join(dir, recordFile)}} {
			if may(sibling, try...) {
				t.Errorf("another VMM may %q", try)
			}
		}
	}
	if len(users) != 2 || users[0] || len(groups) != 2 || groups[0] || groups[r.OwnerBase] {
		t.Errorf("the disks' users are %v and their groups %v, not one for each", users, groups)
	}
}
