package agentrpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
)

// ChunkSize is the unit in which files are fetched, in bytes. A memory file is mostly zeros, and what is not packs well: so a
// chunk is sent packed, and one of zeros not at all.
const ChunkSize = 4 << 20

// sizeHeader tells the size of the file that a chunk is of.
const sizeHeader = "Warmboot-File-Size"

// layoutLimit is how large the description of a file's holes may be, in bytes: enough for 500,000 of them.
const layoutLimit = 8 << 20

const opFetch = "fetch file"

// Files are those that a host gives to others. A file that it does not have is a NotFound error.
type Files interface {
	OpenArtifact(path string) (*os.File, error)
}

// layout tells where a file has data: the disks of snapshots are holes for the most part, which nobody should have to ask for one by one.
type layout struct {
	Size int64      `json:"size"` // in bytes
	Data [][2]int64 `json:"data"` // chunks, each from and up to; in order
}

// layoutOf asks the file system for a file's holes.
func layoutOf(f *os.File) (layout, error) {
	info, err := f.Stat()
	if err != nil {
		return layout{}, err
	}
	l := layout{Size: info.Size(), Data: [][2]int64{}}
	for at := int64(0); at < l.Size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return layout{}, err
		}
		if at, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return layout{}, err
		}
		from, to := start/ChunkSize, (at+ChunkSize-1)/ChunkSize
		if n := len(l.Data); n > 0 && l.Data[n-1][1] >= from {
			l.Data[n-1][1] = to
		} else {
			l.Data = append(l.Data, [2]int64{from, to})
		}
	}
	return l, nil
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
		f, err := files.OpenArtifact(r.PathValue("path"))
		if err != nil {
			http.Error(w, err.Error(), warmboot.CodeOf(err).Outcome().HTTP)
			return
		}
		defer f.Close()
		if !r.URL.Query().Has("chunk") {
			l, err := layoutOf(f)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(l) // if the other end is gone, nobody is to be told
			return
		}
		n, err := strconv.ParseInt(r.URL.Query().Get("chunk"), 10, 64)
		if err != nil || n < 0 || n > 1<<30 {
			http.Error(w, "chunk must be the number of a chunk", http.StatusBadRequest)
			return
		}
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

// Layout asks a peer how large a file is and which of its chunks, each from and up to, have anything other than holes. What the peer does not
// have is a NotFound error; what no file can look like is Corrupt.
func (p *Peers) Layout(ctx context.Context, peer controlplane.Peer, path string) (size int64, data [][2]int64, err error) {
	_, text, err := p.get(ctx, peer, path, "", layoutLimit)
	if err != nil {
		return 0, nil, err
	}
	var l layout
	err = json.Unmarshal(text, &l)
	last := int64(0)
	for _, d := range l.Data {
		if d[0] < last || d[1] <= d[0] {
			err = errors.Join(err, fmt.Errorf("it has chunks %d to %d after %d", d[0], d[1], last))
		}
		last = d[1]
	}
	if err != nil || l.Size < 0 || last > (l.Size+ChunkSize-1)/ChunkSize {
		return 0, nil, warmboot.Errorf(warmboot.Corrupt, opFetch, "host %s describes %s in a way that no file can be: %d bytes (%v)", peer.Address, path, l.Size, err)
	}
	return l.Size, l.Data, nil
}

// get asks a peer for something of a file.
func (p *Peers) get(ctx context.Context, peer controlplane.Peer, path, query string, limit int64) (http.Header, []byte, error) {
	who := "host " + peer.Address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer.Address+"/artifacts/"+path+query, nil)
	if err != nil {
		return nil, nil, warmboot.Errorf(warmboot.Invalid, opFetch, "%w", err)
	}
	res, err := p.client(peer.ID).Do(req)
	if err != nil {
		return nil, nil, fromWire(ctx, who, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, limit))
	if err != nil {
		return nil, nil, fromWire(ctx, who, err)
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusNoContent:
		return res.Header, body, nil
	case http.StatusNotFound:
		return nil, nil, warmboot.Errorf(warmboot.NotFound, opFetch, "%s does not have %s", who, path)
	}
	return nil, nil, warmboot.Errorf(warmboot.Unavailable, opFetch, "%s answers %s: %.200s", who, res.Status, body)
}

// Chunk fetches one chunk of a peer's file, nil for one of zeros, and tells how large the file is. What the peer does not have is a NotFound
// error; a chunk that cannot be what it sends is Corrupt.
func (p *Peers) Chunk(ctx context.Context, peer controlplane.Peer, path string, n int64) (data []byte, size int64, err error) {
	header, packed, err := p.get(ctx, peer, path, "?chunk="+strconv.FormatInt(n, 10), 2*ChunkSize)
	if err != nil {
		return nil, 0, err
	}
	if size, err = strconv.ParseInt(header.Get(sizeHeader), 10, 64); err != nil || size < 0 {
		return nil, 0, warmboot.Errorf(warmboot.Corrupt, opFetch, "host %s does not tell the size of %s", peer.Address, path)
	}
	if len(packed) == 0 {
		return nil, size, nil
	}
	data, err = p.decoder.DecodeAll(packed, make([]byte, 0, ChunkSize))
	if want := min(ChunkSize, size-n*ChunkSize); err != nil || int64(len(data)) != want {
		return nil, 0, warmboot.Errorf(warmboot.Corrupt, opFetch, "chunk %d of %s from host %s has %d bytes, it must have %d (%v)", n, path, peer.Address, len(data), want, err)
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
