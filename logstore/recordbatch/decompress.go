package recordbatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// xerialHeader begins the framing that Kafka's Java client puts around snappy
// blocks: this magic, two int32 versions, then blocks of int32 length and data.
const (
	xerialHeader    = "\x82SNAPPY\x00"
	xerialHeaderEnd = 16
)

// plain inflates batches. It keeps its buffer and decoders from one to the next.
type plain struct {
	buf  bytes.Buffer
	src  bytes.Reader
	gzip *gzip.Reader
	lz4  *lz4.Reader
	zstd *zstd.Decoder
}

// decompress returns the inflated records, valid until the next call.
func (p *plain) decompress(codec Codec, data []byte, maxBytes int) ([]byte, error) {
	p.buf.Reset()
	p.src.Reset(data)
	var err error
	switch codec {
	case CodecGzip:
		if p.gzip == nil {
			p.gzip = new(gzip.Reader)
		}
		if err = p.gzip.Reset(&p.src); err == nil {
			err = p.copy(p.gzip, maxBytes)
		}
	case CodecLZ4:
		if p.lz4 == nil {
			p.lz4 = lz4.NewReader(nil)
		}
		p.lz4.Reset(&p.src)
		err = p.copy(p.lz4, maxBytes)
	case CodecZstd:
		if p.zstd == nil {
			p.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(MaxDecompressedBytes))
		}
		if err == nil {
			if err = p.zstd.Reset(&p.src); err == nil {
				err = p.copy(p.zstd, maxBytes)
			}
		}
	case CodecSnappy:
		err = p.snappy(data, maxBytes)
	default:
		err = fmt.Errorf("unknown codec: %w", ErrInvalid)
	}
	if err != nil {
		if !errors.Is(err, ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil, fmt.Errorf("inflate %s: %w", codec, err)
	}
	return p.buf.Bytes(), nil
}

func (p *plain) copy(r io.Reader, maxBytes int) error {
	n, err := io.Copy(&p.buf, io.LimitReader(r, int64(maxBytes)+1))
	if err == nil && n > int64(maxBytes) {
		err = fmt.Errorf("more than %d bytes: %w", maxBytes, ErrTooLarge)
	}
	return err
}

// snappy inflates a bare block, or the blocks of the Java client's framing.
func (p *plain) snappy(data []byte, maxBytes int) error {
	if !bytes.HasPrefix(data, []byte(xerialHeader)) {
		return p.snappyBlock(data, maxBytes)
	}
	if len(data) < xerialHeaderEnd {
		return ErrShort
	}
	for data = data[xerialHeaderEnd:]; len(data) > 0; {
		if len(data) < 4 {
			return ErrShort
		}
		n := int64(binary.BigEndian.Uint32(data))
		if data = data[4:]; n > int64(len(data)) {
			return ErrShort
		}
		if err := p.snappyBlock(data[:n], maxBytes); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (p *plain) snappyBlock(block []byte, maxBytes int) error {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return err
	}
	if n > maxBytes-p.buf.Len() {
		return fmt.Errorf("more than %d bytes: %w", maxBytes, ErrTooLarge)
	}
	p.buf.Grow(n)
	out, err := snappy.Decode(p.buf.AvailableBuffer()[:n], block)
	if err != nil {
		return err
	}
	p.buf.Write(out)
	return nil
}
