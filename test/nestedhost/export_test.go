package nestedhost

import "syscall"

// Freeze stops the machine's processor, or lets it go on.
func (m *Machine) Freeze(on bool) {
	p, err := m.powered("freeze")
	if err != nil {
		panic(err)
	}
	signal := syscall.SIGCONT
	if on {
		signal = syscall.SIGSTOP
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		panic(err)
	}
}
