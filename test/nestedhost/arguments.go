package nestedhost

import (
	"fmt"
	"path/filepath"

	"warmboot/internal/guest"
)

// kernelCommandLine: no_timer_check, because on a busy host the emulated timer may be so late that the kernel takes it for broken and
// panics. The rest is what costs time and is not missed.
const kernelCommandLine = "console=ttyS0 no_timer_check quiet systemd.show_status=no mitigations=off lsm=capability,landlock audit=0"

// arguments is QEMU's command line for a machine.
func (m *Machine) arguments() []string {
	device := func(driver string) []string { return []string{"-device", driver + ",romfile="} }
	share := func(name string, options string) []string {
		return append([]string{"-fsdev", "local,id=" + name + ",security_model=none,path=" + m.path(name) + options},
			device("virtio-9p-pci,fsdev="+name+",mount_tag="+name)...)
	}
	args := []string{
		"-name", "nestedhost-" + filepath.Base(m.dir), "-nodefaults", "-no-user-config", "-display", "none",
		// What a Linux machine with virtio devices has no use for costs time.
		"-machine", "q35,hpet=off,smbus=off,sata=off,i8042=off,graphics=off,usb=off,vmport=off",
		// Always emulated: KVM within the host's KVM is another thing on every host, and on most there is none.
		// Not one feature less: kernels within KVM find that the emulated XSAVE contradicts itself and do without it. Where it does not,
		// as without AVX, they use it, and programs die of their signals.
		"-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt",
		// One processor: before 8.1 QEMU may miss what one writes into the code of another, and KVM patches the kernel's whenever its first
		// machine starts and its last one ends. Two that take turns are no faster than one.
		"-smp", "1", "-m", fmt.Sprintf("%dM", m.cfg.MemoryMiB),
		"-kernel", m.cfg.Image.path(kernelFile), "-initrd", m.cfg.Image.path(initrdFile),
		"-append", kernelCommandLine + " systemd.hostname=" + m.cfg.Hostname + " systemd.machine_id=" + m.machineID,
		"-serial", "stdio",
		"-drive", "if=none,id=root,format=qcow2,discard=unmap,file=" + m.path(diskFile),
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + m.path(agentSocket),
	}
	for _, more := range [][]string{
		device("virtio-blk-pci,drive=root"), device("virtio-rng-pci"), device("virtio-serial-pci"), share(inShare, ",readonly=on"), share(outShare, ""),
		{"-device", "virtserialport,chardev=agent,name=" + guest.PortName},
	} {
		args = append(args, more...)
	}
	return args
}
