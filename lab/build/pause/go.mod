module github.com/weft-net/weft/lab/build/pause

go 1.26.0
