// Package kerneltest makes files that look like kernels, as far as anything that only reads their headers can tell.
package kerneltest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// ELF is a whole ELF kernel for x86-64 of at least size bytes. A processor that enters it halts.
func ELF(size int) []byte {
	const header, program = 64, 56         // bytes of a 64-bit ELF file's headers
	code := []byte{0xfa, 0xf4, 0xeb, 0xfd} // cli; hlt; jump back to it
	size = max(size, header+program+len(code))
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: 1<<24 + header + program,
		Phoff: header, Ehsize: header, Phentsize: program, Phnum: 1,
	}
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: 1 << 24, Paddr: 1 << 24,
		Filesz: uint64(size), Memsz: uint64(size), Align: 4096,
	}
	var b bytes.Buffer
	for _, v := range []any{h, p} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	b.Write(code)
	return append(b.Bytes(), make([]byte, size-b.Len())...)
}

// BzImage wraps a packed kernel as the kernel's build does. Its bytes end where the header says. The offsets are from the boot protocol
// in the kernel's documentation.
func BzImage(payload []byte) []byte {
	const setup, before = 3, 0x40 // sectors of real-mode code; bytes of protected-mode code before the payload
	code := (setup + 1) * 512
	size := code + (before+len(payload)+15)/16*16
	b := make([]byte, size)
	b[0x1f1] = setup
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x1f4:], uint32(size-code)/16)
	binary.LittleEndian.PutUint32(b[0x248:], before)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	copy(b[code+before:], payload)
	return b
}
