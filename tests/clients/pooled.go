// Callers with Go's usual connection pool: each posts, pauses for less than the 90 s for which Go keeps an idle
// connection, and posts again. Prints one line for each failure and a count.
//
//	pooled URL CALLERS POSTS MIN_MS MAX_MS
package main

import (
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func number(index int) int {
	value, err := strconv.Atoi(os.Args[index])
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	url, callers, posts, least, most := os.Args[1], number(2), number(3), number(4), number(5)
	var failed, done int64
	var all sync.WaitGroup
	for caller := 0; caller < callers; caller++ {
		all.Add(1)
		go func(caller int) {
			defer all.Done()
			transport := http.DefaultTransport.(*http.Transport).Clone()
			transport.Proxy = nil
			client := &http.Client{Transport: transport}
			random := rand.New(rand.NewSource(int64(caller)))
			for post := 0; post < posts; post++ {
				pause := least + random.Intn(most-least+1)
				if post > 0 {
					time.Sleep(time.Duration(pause) * time.Millisecond)
				}
				response, err := client.Post(url, "application/json", strings.NewReader("{}"))
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err == nil && response.StatusCode != 200 {
						err = fmt.Errorf("status %d", response.StatusCode)
					}
				}
				if err != nil {
					atomic.AddInt64(&failed, 1)
					fmt.Printf("caller %d, post %d after %d ms: %v\n", caller, post, pause, err)
				}
				atomic.AddInt64(&done, 1)
			}
		}(caller)
	}
	all.Wait()
	fmt.Printf("%d posts, %d failed\n", done, failed)
	if failed > 0 {
		os.Exit(1)
	}
}
