(* T10. GPTQ is Babai rounding: its error in the pivots of C = U^T D U, and a bound where no code is clipped. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Babai.
Variables (R : realFieldType) (n : nat) (C U : 'M[R]_n) (D : 'I_n -> R).

(* pos i is when input i is processed, so every order is covered. U is unit triangular in that order: row i of U has a 1
   at i and otherwise only entries of inputs processed before i. *)
Variable pos : 'I_n -> nat.
Definition unit_triangular (A : 'M[R]_n) :=
  forall i j, A i j = if j == i then 1 else if (pos j < pos i)%N then A i j else 0.
Hypotheses (U_tri : unit_triangular U) (factored : C = U^T *m diag_mx (\row_i D i) *m U).

(* What is rounded at input i: w_i plus the errors made before, weighted by U. *)
Definition target (w q : 'rV[R]_n) i := w 0 i + \sum_(j | (pos j < pos i)%N) U i j * (w 0 j - q 0 j).
Definition residual w q i := target w q i - q 0 i.

Lemma triangular_sum (A : 'M[R]_n) (e : 'I_n -> R) i :
  unit_triangular A -> \sum_j A i j * e j = e i + \sum_(j | (pos j < pos i)%N) A i j * e j.
Proof.
move=> tri; rewrite (bigD1 i) //= tri eqxx mul1r [in RHS]big_mkcond [in RHS](bigD1 i) //= ltnn add0r; congr (_ + _).
by apply: eq_bigr => j /negbTE neq; rewrite tri neq; case: ifP; rewrite ?mul0r.
Qed.

Lemma residualE w q i : residual w q i = ((w - q) *m U^T) 0 i.
Proof.
rewrite mxE (eq_bigr (fun j => U i j * (w 0 j - q 0 j))) => [|j _]; last by rewrite !mxE mulrC.
by rewrite triangular_sum // /residual /target addrAC.
Qed.

(* The error of any q at all, exactly. *)
Theorem babai_identity w q : form C (w - q) = \sum_i D i * residual w q i ^+ 2.
Proof.
rewrite /form factored; set e := w - q.
have -> : e *m (U^T *m diag_mx (\row_i D i) *m U) *m e^T = e *m U^T *m diag_mx (\row_i D i) *m (e *m U^T)^T.
  by rewrite trmx_mul trmxK !mulmxA.
rewrite -/(dot _ _) dotE big_ord1; apply: eq_bigr => i _; rewrite mul_mx_diag [X in X * _]mxE [X in _ * X * _]mxE
  residualE.
by rewrite mulrAC mulrC -expr2.
Qed.

(* Rounding without clipping, D >= 0 (C is psd): f <= sum D_i s_i^2 / 8, s_i the grid's step at input i. *)
Hypothesis D_ge0 : forall i, 0 <= D i.

Theorem babai_bound w q (s : 'I_n -> R) : (forall i, `|residual w q i| <= s i / 2%:R) ->
  objective w C q <= \sum_i D i * s i ^+ 2 / 8%:R.
Proof.
move=> rounded; rewrite /objective babai_identity mulr_suml; apply: ler_sum => i _.
have sq : residual w q i ^+ 2 <= (s i / 2%:R) ^+ 2.
  rewrite -[X in X <= _]real_normK ?num_real //.
  by rewrite ler_expn2r ?nnegrE ?normr_ge0 ?(le_trans (normr_ge0 _) (rounded i)) ?rounded.
have -> : D i * s i ^+ 2 / 8%:R = D i * (s i / 2%:R) ^+ 2 / 2%:R by field.
by rewrite ler_pmul2r ?invr_gt0 ?ltr0n // ler_wpmul2l.
Qed.

Corollary babai_bound_uniform w q s : (forall i, `|residual w q i| <= s / 2%:R) ->
  objective w C q <= s ^+ 2 / 8%:R * \sum_i D i.
Proof.
move=> rounded; apply: le_trans (babai_bound rounded) _.
by rewrite mulr_sumr le_eqVlt; apply/orP; left; apply/eqP/eq_bigr => i _; field.
Qed.

(* tr D <= tr C *)
Theorem pivots_le_trace : \sum_i D i <= \tr C.
Proof.
apply: ler_sum => i _; rewrite factored mxE (bigD1 i) //= mul_mx_diag !mxE (U_tri i i) eqxx mul1r mulr1.
by rewrite ler_addl sumr_ge0 // => k _; rewrite !mxE mulrAC -expr2 mulr_ge0 ?sqr_ge0.
Qed.

(* The procedure exists and is this: round the targets one after the other. *)
Variable round : 'I_n -> R -> R.
Definition round_once w q : 'rV[R]_n := \row_i round i (target w q i).
Definition babai w := iter (\max_i (pos i).+1) (round_once w) 0.

Theorem babai_rounds w i : babai w 0 i = round i (target w (babai w) i).
Proof.
have stable k j : (pos j < k)%N -> iter k.+1 (round_once w) 0 0 j = iter k (round_once w) 0 0 j.
  elim: k j => // k IH j; rewrite ltnS => le; rewrite iterS mxE [in RHS]iterS mxE; congr (round j (_ + _)).
  by apply: eq_bigr => l lt; rewrite IH // (leq_trans lt).
have -> : babai w 0 i = iter (\max_i (pos i).+1).+1 (round_once w) 0 0 i.
  by rewrite stable // (leq_bigmax i).
by rewrite iterS mxE.
Qed.

(* GPTQ keeps a running weight instead: with V = U^-1, the triangular factor of C^-1 = V D^-1 V^T, each rounding
   error r_k is spread over the inputs not yet processed by column k of V. The number it rounds is the same. *)
Theorem gptq_target (V : 'M[R]_n) w q i : unit_triangular V -> V *m U = 1%:M ->
  target w q i = w 0 i - \sum_(k | (pos k < pos i)%N) V i k * residual w q k.
Proof.
move=> V_tri VU; have : (w - q) 0 i = \sum_k V i k * residual w q k.
  rewrite -[w - q in LHS]mulmx1 -trmx1 -VU trmx_mul mulmxA mxE.
  by apply: eq_bigr => k _; rewrite residualE [X in _ * X]mxE mulrC.
rewrite triangular_sum // !mxE {1}/residual => eq.
by rewrite -[w 0 i](subrK (q 0 i)) eq; ring.
Qed.

End Babai.

(* With a mask: refit exactly on the kept inputs S, then round with C_SS. p lists the kept inputs. *)
Section Masked.
Variables (R : realFieldType) (n k : nat) (C : 'M[R]_n) (w : 'rV[R]_n) (p : 'I_k -> 'I_n).
Hypotheses (symC : symmetric C) (p_inj : injective p).

Definition embed : 'M[R]_(k, n) := \matrix_(i, j) (p i == j)%:R.
Definition C_SS : 'M[R]_k := embed *m C *m embed^T.

Lemma C_SSE i j : C_SS i j = C (p i) (p j).
Proof.
rewrite mxE (bigD1 (p j)) //= big1 => [|l /negbTE neq]; last by rewrite !mxE eq_sym neq mulr0.
rewrite !mxE eqxx mulr1 addr0 (bigD1 (p i)) //= big1 => [|l /negbTE neq]; last by rewrite !mxE eq_sym neq mul0r.
by rewrite !mxE eqxx mul1r addr0.
Qed.

(* u *m embed are the rows with support in S. *)
Lemma embedE (u : 'rV[R]_k) i : (u *m embed) 0 (p i) = u 0 i.
Proof.
rewrite mxE (bigD1 i) //= big1 => [|l /negbTE neq]; first by rewrite !mxE eqxx mulr1 addr0.
by rewrite !mxE (inj_eq p_inj) neq mulr0.
Qed.

Lemma supported (t : 'rV[R]_n) : (forall j, j \notin codom p -> t 0 j = 0) -> t = (\row_i t 0 (p i)) *m embed.
Proof.
move=> off; apply/rowP => j; have [/codomP[i ->] | noti] := boolP (j \in codom p); first by rewrite embedE mxE.
rewrite off // mxE big1 // => i _; rewrite !mxE; case: eqP => [eq|]; rewrite ?mulr0 //.
by rewrite -eq codom_f in noti.
Qed.

(* The exact refit: the gradient vanishes on S. *)
Variable refit : 'rV[R]_k.
Hypothesis normal_equations : (refit *m embed - w) *m C *m embed^T = 0.
Definition f_S := objective w C (refit *m embed).

Theorem masked_objective u : objective w C (u *m embed) = f_S + form C_SS (refit - u) / 2%:R.
Proof.
have -> : u *m embed = refit *m embed + (u - refit) *m embed by rewrite mulmxBl addrC subrK.
rewrite objectiveD // -/f_S /dot trmx_mul mulmxA /gradient normal_equations mul0mx mxtrace0 addr0.
by rewrite -[refit - u]opprB formN /form /C_SS trmx_mul !mulmxA.
Qed.

Theorem refit_optimal u : psd C -> f_S <= objective w C (u *m embed).
Proof.
move=> [_ C0]; rewrite masked_objective ler_addl divr_ge0 ?ler0n //.
by have := C0 ((refit - u) *m embed); rewrite /form /C_SS trmx_mul !mulmxA.
Qed.

(* f = f_S + 1/2 sum D_i r_i^2, and the bound. *)
Variables (U : 'M[R]_k) (D : 'I_k -> R) (pos : 'I_k -> nat).
Hypotheses (U_tri : unit_triangular pos U) (factored : C_SS = U^T *m diag_mx (\row_i D i) *m U).

Theorem masked_identity q :
  objective w C (q *m embed) = f_S + (\sum_i D i * residual U pos refit q i ^+ 2) / 2%:R.
Proof. by rewrite masked_objective (babai_identity U_tri factored). Qed.

Theorem masked_bound q (s : 'I_k -> R) : (forall i, 0 <= D i) ->
  (forall i, `|residual U pos refit q i| <= s i / 2%:R) ->
  objective w C (q *m embed) <= f_S + \sum_i D i * s i ^+ 2 / 8%:R.
Proof.
by move=> D_ge0 rounded; rewrite masked_objective ler_add2l; apply: (babai_bound U_tri factored D_ge0 rounded).
Qed.

End Masked.
