package guest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
)

// The parts of an image, as the OCI's specification has them (https://github.com/opencontainers/image-spec).
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// rehearsalRegistry is a registry with one image, whose command ends at once, on the machine's loopback, where Docker wants no TLS.
type rehearsalRegistry struct {
	listener net.Listener
	server   http.Server
}

func openRehearsalRegistry() (*rehearsalRegistry, error) {
	layer, diff, err := rehearsalLayer()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/" + programName}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff}},
	})
	if err != nil {
		return nil, err
	}
	part := func(media string, content []byte) map[string]any {
		return map[string]any{"mediaType": media, "digest": digest(content), "size": len(content)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": part(configType, config), "layers": []any{part(layerType, layer)},
	})
	if err != nil {
		return nil, err
	}
	// What a pull asks for (https://github.com/opencontainers/distribution-spec).
	serve := http.NewServeMux()
	has := func(path, media string, content []byte) {
		serve.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", media)
			w.Header().Set("Docker-Content-Digest", digest(content))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content)
		})
	}
	has("/v2/{$}", "application/json", []byte("{}"))
	has("/v2/"+rehearsalName+"/manifests/latest", manifestType, manifest)
	has("/v2/"+rehearsalName+"/manifests/"+digest(manifest), manifestType, manifest)
	has("/v2/"+rehearsalName+"/blobs/"+digest(config), configType, config)
	has("/v2/"+rehearsalName+"/blobs/"+digest(layer), layerType, layer)
	r := &rehearsalRegistry{}
	if r.listener, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	r.server.Handler = serve
	go func() { _ = r.server.Serve(r.listener) }() // until Close
	return r, nil
}

// image is the reference of the image that it has.
func (r *rehearsalRegistry) image() string {
	return r.listener.Addr().String() + "/" + rehearsalName + ":latest"
}

func (r *rehearsalRegistry) Close() error { return r.server.Close() }

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

// programName is the program's in its layer.
const programName = "exit"

// rehearsalLayer is a root file system with nothing in it but a program that ends at once, compressed, and the digest of what it is uncompressed.
func rehearsalLayer() (layer []byte, diff string, err error) {
	program, err := exitProgram()
	if err != nil {
		return nil, "", err
	}
	var files, compressed bytes.Buffer
	t := tar.NewWriter(&files)
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: programName, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, "", err
	}
	if _, err := t.Write(program); err != nil {
		return nil, "", err
	}
	if err := t.Close(); err != nil {
		return nil, "", err
	}
	z := gzip.NewWriter(&compressed)
	if _, err := z.Write(files.Bytes()); err != nil {
		return nil, "", err
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	return compressed.Bytes(), digest(files.Bytes()), nil
}

// exitCalls is `mov edi, 0; mov eax, 60; syscall`: exit(0) of Linux on x86-64, which is all that runtime images are for.
var exitCalls = []byte{0xbf, 0, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}

// exitProgram is the smallest program that there is: exitCalls after the two headers that an executable must have (elf(5)).
func exitProgram() ([]byte, error) {
	const (
		address    = 0x400000 // where programs of this architecture lie
		headerSize = 64       // of elf.Header64
		progSize   = 56       // of elf.Prog64
	)
	size := uint64(headerSize + progSize + len(exitCalls))
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: address + headerSize + progSize, Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: 1,
	}
	segment := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: address, Paddr: address, Filesz: size, Memsz: size, Align: 0x1000}
	var program bytes.Buffer
	for _, part := range []any{header, segment, exitCalls} {
		if err := binary.Write(&program, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return program.Bytes(), nil
}
