-- For wrk: posts the file named in BODY, and prints one line of JSON at the end (times in µs).
-- With PAUSE, each connection waits that many milliseconds before each request.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/json"
file:close()

local pause = tonumber(os.getenv("PAUSE") or "0")
if pause > 0 then
  delay = function() return pause end
end

done = function(summary, latency)
  local e = summary.errors
  print(string.format(
    '{"reviews": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "failed": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
