import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Callers with Java's own connection pools: java.net.http, or HttpURLConnection, which sends a POST again where the server
 * closes without an answer. Prints one line for each failure and a count.
 *
 * java Pooled.java (http|url) URL CALLERS POSTS MIN_MS MAX_MS
 */
public class Pooled {
    public static void main(String[] arguments) throws Exception {
        boolean modern = arguments[0].equals("http");
        URI uri = URI.create(arguments[1]);
        int callers = Integer.parseInt(arguments[2]);
        int posts = Integer.parseInt(arguments[3]);
        int least = Integer.parseInt(arguments[4]);
        int most = Integer.parseInt(arguments[5]);
        AtomicInteger failed = new AtomicInteger();
        CountDownLatch all = new CountDownLatch(callers);
        for (int caller = 0; caller < callers; caller++) {
            int number = caller;
            Thread thread = new Thread(() -> {
                Random random = new Random(number);
                // HTTP/1.1: an upgrade to h2c would be another test.
                HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
                for (int post = 0; post < posts; post++) {
                    int pause = least + random.nextInt(most - least + 1);
                    try {
                        if (post > 0) {
                            Thread.sleep(pause);
                        }
                        int status = modern ? modern(client, uri) : classic(uri);
                        if (status != 200) {
                            throw new IOException("status " + status);
                        }
                    } catch (IOException | InterruptedException failure) {
                        failed.incrementAndGet();
                        System.out.println("caller " + number + ", post " + post + " after " + pause + " ms: " + failure);
                    }
                }
                all.countDown();
            });
            thread.setDaemon(true);
            thread.start();
        }
        all.await();
        System.out.println(callers * posts + " posts, " + failed + " failed");
        System.exit(failed.get() > 0 ? 1 : 0);
    }

    private static int modern(HttpClient client, URI uri) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(uri)
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{}"))
                .build();
        return client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode();
    }

    private static int classic(URI uri) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
        connection.setRequestMethod("POST");
        connection.setRequestProperty("Content-Type", "application/json");
        connection.setDoOutput(true);
        connection.getOutputStream().write("{}".getBytes(StandardCharsets.UTF_8));
        int status = connection.getResponseCode();
        var body = status < 400 ? connection.getInputStream() : connection.getErrorStream();
        if (body != null) {
            body.readAllBytes();
            body.close();
        }
        return status;
    }
}
