// Verifies our proofs and checkpoints with golang.org/x/mod/sumdb/{note,tlog}. Usage: main FOLDER
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type vector struct {
	Good       bool
	Signed     bool
	Proof      []string
	Checkpoint string
	Old        string
	Index      int64
	Entry      string
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// tree is what a signed checkpoint says, once its signature was verified.
func tree(signed string, keys note.Verifiers, origin string) (tlog.Tree, error) {
	opened, err := note.Open([]byte(signed), keys)
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != origin {
		log.Fatalf("checkpoint %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	hash, err := tlog.ParseHash(lines[2])
	must(err)
	return tlog.Tree{N: size, Hash: hash}, nil
}

func hashes(encoded []string) []tlog.Hash {
	var found []tlog.Hash
	for _, each := range encoded {
		hash, err := tlog.ParseHash(each)
		must(err)
		found = append(found, hash)
	}
	return found
}

func each(path string, open func(vector) ([]tlog.Tree, error), check func(vector, []tlog.Tree) error) int {
	file, err := os.Open(path)
	must(err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	count := 0
	for lines.Scan() {
		var found vector
		must(json.Unmarshal(lines.Bytes(), &found))
		trees, err := open(found)
		if (err == nil) != found.Signed {
			log.Fatalf("%s, line %d: signed is %v, and: %v", path, count, found.Signed, err)
		}
		if err == nil {
			if err := check(found, trees); (err == nil) != found.Good {
				log.Fatalf("%s, line %d: good is %v, and: %v", path, count, found.Good, err)
			}
		}
		count++
	}
	must(lines.Err())
	return count
}

func main() {
	folder := os.Args[1]
	var keys struct{ Origin, Log string }
	data, err := os.ReadFile(filepath.Join(folder, "keys.json"))
	must(err)
	must(json.Unmarshal(data, &keys))
	verifier, err := note.NewVerifier(keys.Log)
	must(err)
	known := note.VerifierList(verifier)
	one := func(v vector) ([]tlog.Tree, error) {
		at, err := tree(v.Checkpoint, known, keys.Origin)
		return []tlog.Tree{at}, err
	}
	both := func(v vector) ([]tlog.Tree, error) {
		old, err := tree(v.Old, known, keys.Origin)
		if err != nil {
			return nil, err
		}
		at, err := tree(v.Checkpoint, known, keys.Origin)
		return []tlog.Tree{old, at}, err
	}
	inclusion := each(filepath.Join(folder, "inclusion.jsonl"), one, func(v vector, trees []tlog.Tree) error {
		entry, err := base64.StdEncoding.DecodeString(v.Entry)
		must(err)
		return tlog.CheckRecord(hashes(v.Proof), trees[0].N, trees[0].Hash, v.Index, tlog.RecordHash(entry))
	})
	consistency := each(filepath.Join(folder, "consistency.jsonl"), both, func(v vector, trees []tlog.Tree) error {
		old, new := trees[0], trees[1]
		return tlog.CheckTree(hashes(v.Proof), new.N, new.Hash, old.N, old.Hash)
	})
	fmt.Printf("go: %d inclusion and %d consistency proofs with their checkpoints, judged as they are\n", inclusion, consistency)
}
