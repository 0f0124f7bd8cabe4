package agentrpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"

	"warmboot"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
)

// ChunkSize is the unit in which files are fetched, in bytes. A memory file is mostly zeros, and what is not packs well: so a
// chunk is sent packed, and one of zeros not at all.
const ChunkSize = 4 << 20

// sizeHeader tells the size of the file that a chunk is of.
const sizeHeader = "Warmboot-File-Size"

// Files are those that a host gives to others. A file that it does not have is a NotFound error.
type Files interface {
	OpenArtifact(path string) (*os.File, error)
}

// ArtifactHandler gives files of a host's snapshots and runtime images to other hosts of its cluster.
func ArtifactHandler(files Files) http.Handler {
	zeros := make([]byte, ChunkSize)
	// As fast as it packs: the network is rarely slower.
	encoder := must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2)))
	buffers := sync.Pool{New: func() any { return new([ChunkSize]byte) }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /artifacts/{path...}", func(w http.ResponseWriter, r *http.Request) {
		if _, err := authority.PeerOf(r.TLS); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		n, err := strconv.ParseInt(r.URL.Query().Get("chunk"), 10, 64)
		if err != nil || n < 0 || n > 1<<30 {
			http.Error(w, "the number of the chunk is missing", http.StatusBadRequest)
			return
		}
		f, err := files.OpenArtifact(r.PathValue("path"))
		if err != nil {
			http.Error(w, err.Error(), warmboot.CodeOf(err).Outcome().HTTP)
			return
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set(sizeHeader, strconv.FormatInt(info.Size(), 10))
		buffer := buffers.Get().(*[ChunkSize]byte)
		defer buffers.Put(buffer)
		got, err := f.ReadAt(buffer[:], n*ChunkSize)
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if bytes.Equal(buffer[:got], zeros[:got]) {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_, _ = w.Write(encoder.EncodeAll(buffer[:got], nil)) // if the other end is gone, nobody is to be told
	})
	return mux
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options above do not fit each other
	}
	return v
}

// Peers fetches files from other hosts.
type Peers struct {
	credentials *authority.Credentials
	decoder     *zstd.Decoder

	mu      sync.Mutex
	clients map[warmboot.ID]*http.Client
}

// NewPeers returns the way to other hosts for a host with these credentials.
func NewPeers(c *authority.Credentials) *Peers {
	return &Peers{
		credentials: c, clients: map[warmboot.ID]*http.Client{},
		decoder: must(zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*ChunkSize), zstd.WithDecoderConcurrency(2))),
	}
}

// Chunk fetches one chunk of a peer's file, nil for one of zeros, and tells how large the file is. What the peer does not have is a NotFound
// error; a chunk that cannot be what it sends is Corrupt.
func (p *Peers) Chunk(ctx context.Context, peer controlplane.Peer, path string, n int64) (data []byte, size int64, err error) {
	who := "host " + peer.Address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer.Address+"/artifacts/"+path+"?chunk="+strconv.FormatInt(n, 10), nil)
	if err != nil {
		return nil, 0, warmboot.Errorf(warmboot.Invalid, "fetch file", "%w", err)
	}
	res, err := p.client(peer.ID).Do(req)
	if err != nil {
		return nil, 0, fromWire(ctx, who, err)
	}
	defer res.Body.Close()
	packed, err := io.ReadAll(io.LimitReader(res.Body, 2*ChunkSize))
	if err != nil {
		return nil, 0, fromWire(ctx, who, err)
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusNoContent:
	case http.StatusNotFound:
		return nil, 0, warmboot.Errorf(warmboot.NotFound, "fetch file", "%s does not have %s", who, path)
	default:
		return nil, 0, warmboot.Errorf(warmboot.Unavailable, "fetch file", "%s answers %s: %.200s", who, res.Status, packed)
	}
	if size, err = strconv.ParseInt(res.Header.Get(sizeHeader), 10, 64); err != nil || size < 0 {
		return nil, 0, warmboot.Errorf(warmboot.Corrupt, "fetch file", "%s does not tell the size of %s", who, path)
	}
	if res.StatusCode == http.StatusNoContent {
		return nil, size, nil
	}
	data, err = p.decoder.DecodeAll(packed, make([]byte, 0, ChunkSize))
	if want := min(ChunkSize, size-n*ChunkSize); err != nil || int64(len(data)) != want {
		return nil, 0, warmboot.Errorf(warmboot.Corrupt, "fetch file", "chunk %d of %s from %s has %d bytes, it must have %d (%v)", n, path, who, len(data), want, err)
	}
	return data, size, nil
}

func (p *Peers) client(id warmboot.ID) *http.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[id]
	if c == nil {
		c = newClient(p.credentials.Client(authority.HostName(id)))
		p.clients[id] = c
	}
	return c
}

// Close ends the connections that nobody uses.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.CloseIdleConnections()
	}
	return nil
}
